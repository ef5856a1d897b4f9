use std::mem::MaybeUninit;

use candle_core::WithDType;
use half::{bf16, f16};
use pulp::Simd;

use super::simd::{CHUNK, Lanes, Real, to_bf16, to_f16};
use super::sixteen::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// An element type of the kernels, with the type its arithmetic runs in: f32 for the 16-bit types, itself otherwise.
pub(crate) trait Element: WithDType {
    type Acc: Real;
    /// Every value rounded, in the same memory where it can be.
    fn narrow_all(values: Vec<Self::Acc>) -> Vec<Self>;

    /// Where up to [`CHUNK`] elements are widened: nothing where no element has to be.
    type Buffer;
    const BUFFER: Self::Buffer;

    fn widen(self) -> Self::Acc;
    /// The nearest value of this type.
    fn narrow(value: Self::Acc) -> Self;
    /// Every number rounded to the nearest value of this type.
    fn rounded<S: Simd>(x: Lanes<S, Self::Acc>) -> Lanes<S, Self::Acc>;

    /// `value` in the type of the arithmetic.
    fn acc(value: f64) -> Self::Acc {
        Self::Acc::nearest(value)
    }

    /// The values of a row, however long, in the type of the arithmetic.
    fn widened_row<'a>(values: &'a [Self], buffer: &'a mut Vec<Self::Acc>) -> &'a [Self::Acc];
    /// Up to [`CHUNK`] values in the type of the arithmetic.
    fn widened<'a>(values: &'a [Self], buffer: &'a mut Self::Buffer) -> &'a [Self::Acc];
    /// The same to be changed; [`restore`](Self::restore) then stores them.
    fn widened_mut<'a>(values: &'a mut [Self], buffer: &'a mut Self::Buffer) -> &'a mut [Self::Acc];
    /// Stores values that were widened to be changed.
    ///
    /// # Safety
    /// These values were widened into this buffer.
    unsafe fn restore(values: &mut [Self], buffer: &Self::Buffer);
    /// Where to write values in the type of the arithmetic; [`finish`](Self::finish) then stores them.
    fn target<'a>(
        values: &'a mut [MaybeUninit<Self>],
        buffer: &'a mut Self::Buffer,
    ) -> &'a mut [MaybeUninit<Self::Acc>];
    /// Stores what was written to the target of these values.
    ///
    /// # Safety
    /// All of the target was written.
    unsafe fn finish(values: &mut [MaybeUninit<Self>], buffer: &Self::Buffer);
}

macro_rules! widest {
    ($type:ty) => {
        impl Element for $type {
            type Acc = Self;
            type Buffer = ();
            const BUFFER: () = ();

            #[inline(always)]
            fn widen(self) -> Self {
                self
            }

            #[inline(always)]
            fn narrow(value: Self) -> Self {
                value
            }

            fn narrow_all(values: Vec<Self>) -> Vec<Self> {
                values
            }

            #[inline(always)]
            fn rounded<S: Simd>(x: Lanes<S, Self>) -> Lanes<S, Self> {
                x
            }

            #[inline(always)]
            fn widened_row<'a>(values: &'a [Self], _: &'a mut Vec<Self>) -> &'a [Self] {
                values
            }

            #[inline(always)]
            fn widened<'a>(values: &'a [Self], _: &'a mut ()) -> &'a [Self] {
                values
            }

            #[inline(always)]
            fn widened_mut<'a>(values: &'a mut [Self], _: &'a mut ()) -> &'a mut [Self] {
                values
            }

            #[inline(always)]
            unsafe fn restore(_: &mut [Self], _: &()) {}

            #[inline(always)]
            fn target<'a>(values: &'a mut [MaybeUninit<Self>], _: &'a mut ()) -> &'a mut [MaybeUninit<Self>] {
                values
            }

            #[inline(always)]
            unsafe fn finish(_: &mut [MaybeUninit<Self>], _: &()) {}
        }
    };
}

macro_rules! sixteen_bit {
    ($type:ty, $widen:ident, $narrow:ident, $rounded:ident) => {
        impl Element for $type {
            type Acc = f32;
            type Buffer = [MaybeUninit<f32>; CHUNK];
            const BUFFER: Self::Buffer = [MaybeUninit::uninit(); CHUNK];

            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }

            #[inline(always)]
            fn narrow(value: f32) -> Self {
                $narrow(value)
            }

            fn narrow_all(values: Vec<f32>) -> Vec<Self> {
                values.into_iter().map(Self::narrow).collect()
            }

            #[inline(always)]
            fn rounded<S: Simd>(x: Lanes<S, f32>) -> Lanes<S, f32> {
                x.with($rounded(x.simd, x.register))
            }

            #[inline(always)]
            fn widened_row<'a>(values: &'a [Self], buffer: &'a mut Vec<f32>) -> &'a [f32] {
                if buffer.len() < values.len() {
                    buffer.resize(values.len(), 0.0);
                }
                let buffer = &mut buffer[..values.len()];
                for (wide, value) in buffer.iter_mut().zip(values) {
                    *wide = value.widen();
                }
                buffer
            }

            #[inline(always)]
            fn widened<'a>(values: &'a [Self], buffer: &'a mut Self::Buffer) -> &'a [f32] {
                let buffer = &mut buffer[..values.len()];
                for (wide, value) in buffer.iter_mut().zip(values) {
                    wide.write(value.widen());
                }
                // SAFETY: all of it was just written.
                unsafe { buffer.assume_init_ref() }
            }

            #[inline(always)]
            fn widened_mut<'a>(values: &'a mut [Self], buffer: &'a mut Self::Buffer) -> &'a mut [f32] {
                let buffer = &mut buffer[..values.len()];
                for (wide, value) in buffer.iter_mut().zip(values) {
                    wide.write(value.widen());
                }
                // SAFETY: all of it was just written.
                unsafe { buffer.assume_init_mut() }
            }

            #[inline(always)]
            unsafe fn restore(values: &mut [Self], buffer: &Self::Buffer) {
                // SAFETY: the caller widened as many values as there are.
                let wide = unsafe { buffer[..values.len()].assume_init_ref() };
                for (value, wide) in values.iter_mut().zip(wide) {
                    *value = Self::narrow(*wide);
                }
            }

            #[inline(always)]
            fn target<'a>(
                values: &'a mut [MaybeUninit<Self>],
                buffer: &'a mut Self::Buffer,
            ) -> &'a mut [MaybeUninit<f32>] {
                &mut buffer[..values.len()]
            }

            #[inline(always)]
            unsafe fn finish(values: &mut [MaybeUninit<Self>], buffer: &Self::Buffer) {
                // SAFETY: the caller wrote as many values as there are.
                let wide = unsafe { buffer[..values.len()].assume_init_ref() };
                for (value, wide) in values.iter_mut().zip(wide) {
                    value.write(Self::narrow(*wide));
                }
            }
        }
    };
}

widest!(f32);
widest!(f64);
sixteen_bit!(bf16, bf16_to_f32, f32_to_bf16, to_bf16);
sixteen_bit!(f16, f16_to_f32, f32_to_f16, to_f16);

/// Evaluates an expression with `$type` standing for the element type of `$tensor`.
macro_rules! dispatch_float {
    ($name:expr, $tensor:expr, $type:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $type = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $type = f64;
                $body
            }
            candle_core::DType::BF16 => {
                type $type = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $type = half::f16;
                $body
            }
            other => candle_core::bail!("{}: dtype {} is not one of f32, f64, bf16, f16", $name, other.as_str()),
        }
    };
}
pub(crate) use dispatch_float;
