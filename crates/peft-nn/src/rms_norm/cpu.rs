use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{NAME, RmsNorm};
use crate::cpu::simd::{Elementwise, Lanes, accumulate, sum, write};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, map_rows, read, value};
use crate::graph::Value;

pub(super) fn forward(op: &RmsNorm) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight) = (read(&op.x)?, read(&op.weight)?);
        let (x, mut buffer) = (x.as_slice::<T>()?, vec![]);
        let weight = T::widened_row(weight.as_slice()?, &mut buffer);
        let (rows, width) = shape(x, weight);
        let (y, []) = map_rows(rows, width, Normalised::<T> { x, weight, eps: op.eps });
        Ok(value(y, op.x.shape()))
    })
}

pub(super) fn backward(op: &RmsNorm, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight, grad) = (read(&op.x)?, read(&op.weight)?, read(grad)?);
        let (x, grad, mut buffer) = (x.as_slice::<T>()?, grad.as_slice::<T>()?, vec![]);
        let weight = T::widened_row(weight.as_slice()?, &mut buffer);
        let (rows, width) = shape(x, weight);
        let kernel = Gradients::<T> { x, weight, grad, eps: op.eps };
        let (dx, dweight) = if wanted[1] {
            let (dx, [dweight]) = map_rows(rows, width, kernel);
            (dx, Some(value::<T>(dweight, width).into_tensor()))
        } else {
            let (dx, []) = map_rows(rows, width, kernel);
            (dx, None)
        };
        Ok([wanted[0].then(|| value(dx, op.x.shape()).into_tensor()), dweight])
    })
}

/// The number of rows and their length.
fn shape<T, A>(x: &[T], weight: &[A]) -> (usize, usize) {
    (x.len().checked_div(weight.len()).unwrap_or(0), weight.len())
}

/// `1 / sqrt(mean(x^2) + eps)` given the sum of squares.
fn scale(squares: f64, width: usize, eps: f64) -> f64 {
    (squares / width as f64 + eps).sqrt().recip()
}

struct Normalised<'a, T: Element> {
    x: &'a [T],
    weight: &'a [T::Acc],
    eps: f64,
}

// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T, 0> for Normalised<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        _: [&mut [T::Acc]; 0],
        [x_buffer, _]: &mut Scratch<T>,
    ) {
        let width = self.weight.len();
        let x = T::widened_row(&self.x[index * width..][..width], x_buffer);
        let [squares] = sum(simd, Square, [x]);
        write(simd, Scaled { scale: scale(squares, width, self.eps) }, [x, self.weight], [out]);
    }
}

struct Gradients<'a, T: Element> {
    x: &'a [T],
    weight: &'a [T::Acc],
    grad: &'a [T],
    eps: f64,
}

/// With `n = x * scale` the normalised row and `h = grad * weight`: `dx = scale * (h - n * mean(h * n))`. The gradient of the weight is the
/// sum of `grad * n`, if it is asked for.
// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element, const SUMS: usize> Rows<T, SUMS> for Gradients<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        sums: [&mut [T::Acc]; SUMS],
        [x_buffer, grad_buffer]: &mut Scratch<T>,
    ) {
        let width = self.weight.len();
        let x = T::widened_row(&self.x[index * width..][..width], x_buffer);
        let grad = T::widened_row(&self.grad[index * width..][..width], grad_buffer);
        let [squares, dot] = sum(simd, SquareAndProduct, [x, grad, self.weight]);
        let scale = scale(squares, width, self.eps);
        let along_x = -scale.powi(3) * dot / width as f64;
        write(simd, InputGradient { scale, along_x }, [x, grad, self.weight], [out]);
        for dweight in sums {
            accumulate(simd, WeightGradient { scale }, [x, grad], [dweight]);
        }
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
