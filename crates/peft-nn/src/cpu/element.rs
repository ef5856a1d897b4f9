use candle_core::WithDType;
use half::{bf16, f16};
use num_traits::Float;

/// An element type of the kernels, with the type its arithmetic runs in: f32 for the 16-bit types, itself otherwise.
pub(crate) trait Element: WithDType {
    type Acc: WithDType + Float;

    fn widen(self) -> Self::Acc;
    fn narrow(value: Self::Acc) -> Self;

    /// `value` in the type of the arithmetic.
    fn acc(value: f64) -> Self::Acc {
        <Self::Acc as WithDType>::from_f64(value)
    }
}

/// A sum in f64, whatever the terms are: one after another in f32, the small terms of a long row would round away.
#[inline(always)]
pub(crate) fn sum<A: WithDType>(terms: impl Iterator<Item = A>) -> A {
    A::from_f64(terms.map(WithDType::to_f64).sum())
}

macro_rules! widest {
    ($type:ty) => {
        impl Element for $type {
            type Acc = Self;

            #[inline(always)]
            fn widen(self) -> Self {
                self
            }

            #[inline(always)]
            fn narrow(value: Self) -> Self {
                value
            }
        }
    };
}

macro_rules! sixteen_bit {
    ($type:ty) => {
        impl Element for $type {
            type Acc = f32;

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }

            #[inline(always)]
            fn narrow(value: f32) -> Self {
                Self::from_f32(value)
            }
        }
    };
}

widest!(f32);
widest!(f64);
sixteen_bit!(bf16);
sixteen_bit!(f16);

/// `1 / (1 + exp(-x))`
#[inline(always)]
pub(crate) fn sigmoid<A: Float>(x: A) -> A {
    (A::one() + (-x).exp()).recip()
}

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
