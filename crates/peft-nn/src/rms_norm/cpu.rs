use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{NAME, RmsNorm};
use crate::cpu::simd::{Elementwise, Lanes, accumulate, sum, write};
use crate::cpu::{Columns, Element, Rows, dispatch_float, map_rows, read, sum_columns, value};
use crate::graph::Value;

pub(super) fn forward(op: &RmsNorm) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight) = (read(&op.x)?, read(&op.weight)?);
        let (x, weight) = (x.as_slice::<T>()?, weight.as_slice::<T>()?);
        let (rows, width) = shape(x, weight);
        Ok(value(map_rows(rows, width, Normalised { x, weight, eps: op.eps }), op.x.shape()))
    })
}

pub(super) fn backward(op: &RmsNorm, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight, grad) = (read(&op.x)?, read(&op.weight)?, read(grad)?);
        let (x, weight, grad) = (x.as_slice::<T>()?, weight.as_slice::<T>()?, grad.as_slice::<T>()?);
        let (rows, width) = shape(x, weight);
        let gradients = Gradients { x, weight, grad, eps: op.eps };
        let dx = wanted[0].then(|| value(map_rows(rows, width, gradients), op.x.shape()).into_tensor());
        let dweight = wanted[1].then(|| {
            let [dweight] = sum_columns(rows, width, gradients);
            value::<T>(dweight, width).into_tensor()
        });
        Ok([dx, dweight])
    })
}

/// The number of rows and their length.
fn shape<T>(x: &[T], weight: &[T]) -> (usize, usize) {
    (x.len().checked_div(weight.len()).unwrap_or(0), weight.len())
}

/// `1 / sqrt(mean(x^2) + eps)` given the sum of squares.
fn scale(squares: f64, width: usize, eps: f64) -> f64 {
    (squares / width as f64 + eps).sqrt().recip()
}

struct Normalised<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    eps: f64,
}

// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T> for Normalised<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, index: usize, out: &mut [MaybeUninit<T>]) {
        let width = self.weight.len();
        let x = &self.x[index * width..][..width];
        let [squares] = sum(simd, Square, [x]);
        write(simd, Scaled { scale: scale(squares, width, self.eps) }, [x, self.weight], [out]);
    }
}

#[derive(Clone, Copy)]
struct Gradients<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    grad: &'a [T],
    eps: f64,
}

/// With `n = x * scale` the normalised row and `h = grad * weight`: `dx = scale * (h - n * mean(h * n))`.
// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T> for Gradients<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, index: usize, out: &mut [MaybeUninit<T>]) {
        let width = self.weight.len();
        let inputs = [&self.x[index * width..][..width], &self.grad[index * width..][..width], self.weight];
        let [squares, dot] = sum(simd, SquareAndProduct, inputs);
        let scale = scale(squares, width, self.eps);
        write(simd, InputGradient { scale, along_x: -scale.powi(3) * dot / width as f64 }, inputs, [out]);
    }
}

impl<T: Element> Columns<T, 1> for Gradients<'_, T> {
    #[inline(always)]
    fn add_row<S: Simd>(&self, simd: S, index: usize, sums: [&mut [T::Acc]; 1]) {
        let width = self.weight.len();
        let (x, grad) = (&self.x[index * width..][..width], &self.grad[index * width..][..width]);
        let [squares] = sum(simd, Square, [x]);
        accumulate(simd, WeightGradient { scale: scale(squares, width, self.eps) }, [x, grad], sums);
    }
}

#[derive(Clone, Copy)]
struct Square;

impl Elementwise<1, 1> for Square {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        [x * x]
    }
}

#[derive(Clone, Copy)]
struct Scaled {
    scale: f64,
}

impl Elementwise<2, 1> for Scaled {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, weight]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [T::rounded(x * self.scale) * weight]
    }
}

#[derive(Clone, Copy)]
struct SquareAndProduct;

impl Elementwise<3, 2> for SquareAndProduct {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad, weight]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 2] {
        [x * x, grad * weight * x]
    }
}

#[derive(Clone, Copy)]
struct InputGradient {
    scale: f64,
    along_x: f64,
}

impl Elementwise<3, 1> for InputGradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad, weight]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 1] {
        [x.mul_add(x.constant(self.along_x), grad * weight * self.scale)]
    }
}

#[derive(Clone, Copy)]
struct WeightGradient {
    scale: f64,
}

impl Elementwise<2, 1> for WeightGradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [grad * x * self.scale]
    }
}
