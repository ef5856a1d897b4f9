use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{LayerNorm, NAME};
use crate::cpu::simd::{Elementwise, Identity, Lanes, accumulate, sum, write};
use crate::cpu::{Columns, Element, Rows, dispatch_float, map_rows, read, sum_columns, value};
use crate::graph::Value;

pub(super) fn forward(op: &LayerNorm, bias: Option<&Tensor>) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight, bias) = (read(&op.x)?, read(&op.weight)?, bias.map(read).transpose()?);
        let (x, weight) = (x.as_slice::<T>()?, weight.as_slice::<T>()?);
        let bias = bias.as_ref().map(|bias| bias.as_slice::<T>()).transpose()?;
        let (rows, width) = shape(x, weight);
        Ok(value(map_rows(rows, width, Normalised { x, weight, bias, eps: op.eps }), op.x.shape()))
    })
}

pub(super) fn backward(op: &LayerNorm, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight, grad) = (read(&op.x)?, read(&op.weight)?, read(grad)?);
        let (x, weight, grad) = (x.as_slice::<T>()?, weight.as_slice::<T>()?, grad.as_slice::<T>()?);
        let (rows, width) = shape(x, weight);
        let gradients = Gradients { x, weight, grad, eps: op.eps };
        let dx = wanted[0].then(|| value(map_rows(rows, width, gradients), op.x.shape()).into_tensor());
        let row = |elements: Vec<T>| value(elements, width).into_tensor();
        let [dweight, dbias] = match (wanted[1], wanted[2]) {
            (true, true) => sum_columns(rows, width, gradients).map(|sums| Some(row(sums))),
            (true, false) => {
                let [dweight] = sum_columns(rows, width, gradients);
                [Some(row(dweight)), None]
            }
            (false, true) => {
                let [dbias] = sum_columns(rows, width, Grad { grad, width });
                [None, Some(row(dbias))]
            }
            (false, false) => [None, None],
        };
        Ok([dx, dweight, dbias])
    })
}

/// The number of rows and their length.
fn shape<T>(x: &[T], weight: &[T]) -> (usize, usize) {
    (x.len().checked_div(weight.len()).unwrap_or(0), weight.len())
}

/// How a row is normalised: `(x - mean) * scale`.
#[derive(Clone, Copy)]
struct Moments {
    mean: f64,
    /// `1 / sqrt(variance + eps)`
    scale: f64,
}

impl Moments {
    #[inline(always)]
    fn of<S: Simd, T: Element>(simd: S, x: &[T], eps: f64) -> Self {
        let width = x.len() as f64;
        let [sum_x] = sum(simd, Identity, [x]);
        let mean = sum_x / width;
        let [squares] = sum(simd, SquaredDistance { mean }, [x]);
        Self { mean, scale: (squares / width + eps).sqrt().recip() }
    }

    #[inline(always)]
    fn normalised<S: Simd, R: crate::cpu::simd::Real>(self, x: Lanes<S, R>) -> Lanes<S, R> {
        (x - self.mean) * self.scale
    }
}

struct Normalised<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    eps: f64,
}

// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T> for Normalised<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, index: usize, out: &mut [MaybeUninit<T>]) {
        let x = &self.x[index * self.weight.len()..][..self.weight.len()];
        let moments = Moments::of(simd, x, self.eps);
        match self.bias {
            Some(bias) => write(simd, Affine(moments), [x, self.weight, bias], [out]),
            None => write(simd, Affine(moments), [x, self.weight], [out]),
        }
    }
}

#[derive(Clone, Copy)]
struct Gradients<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    grad: &'a [T],
    eps: f64,
}

impl<'a, T> Gradients<'a, T> {
    #[inline(always)]
    fn row(&self, index: usize) -> [&'a [T]; 2] {
        let width = self.weight.len();
        [&self.x[index * width..][..width], &self.grad[index * width..][..width]]
    }
}

/// With `n` the normalised row and `h = grad * weight`: `dx = scale * (h - mean(h) - n * mean(h * n))`.
// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T> for Gradients<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, index: usize, out: &mut [MaybeUninit<T>]) {
        let [x, grad] = Self::row(self, index);
        let width = x.len() as f64;
        let moments = Moments::of(simd, x, self.eps);
        let [h, hn] = sum(simd, Projections(moments), [x, grad, self.weight]);
        let gradient = InputGradient { moments, mean_h: h / width, mean_hn: hn / width };
        write(simd, gradient, [x, grad, self.weight], [out]);
    }
}

/// Of weight and bias.
impl<T: Element> Columns<T, 2> for Gradients<'_, T> {
    #[inline(always)]
    fn add_row<S: Simd>(&self, simd: S, index: usize, sums: [&mut [T::Acc]; 2]) {
        let [x, grad] = self.row(index);
        accumulate(simd, WeightGradient(Moments::of(simd, x, self.eps)), [x, grad], sums);
    }
}

/// Of the weight alone.
impl<T: Element> Columns<T, 1> for Gradients<'_, T> {
    #[inline(always)]
    fn add_row<S: Simd>(&self, simd: S, index: usize, sums: [&mut [T::Acc]; 1]) {
        let [x, grad] = self.row(index);
        accumulate(simd, WeightGradient(Moments::of(simd, x, self.eps)), [x, grad], sums);
    }
}

/// The gradient of the bias alone.
struct Grad<'a, T> {
    grad: &'a [T],
    width: usize,
}

impl<T: Element> Columns<T, 1> for Grad<'_, T> {
    #[inline(always)]
    fn add_row<S: Simd>(&self, simd: S, index: usize, sums: [&mut [T::Acc]; 1]) {
        accumulate(simd, Identity, [&self.grad[index * self.width..][..self.width]], sums);
    }
}

#[derive(Clone, Copy)]
struct SquaredDistance {
    mean: f64,
}

impl Elementwise<1, 1> for SquaredDistance {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        let distance = x - self.mean;
        [distance * distance]
    }
}

#[derive(Clone, Copy)]
struct Affine(Moments);

impl Elementwise<2, 1> for Affine {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, weight]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [self.0.normalised(x) * weight]
    }
}

impl Elementwise<3, 1> for Affine {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, weight, bias]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 1] {
        [self.0.normalised(x).mul_add(weight, bias)]
    }
}

/// `h` and `h * n`.
#[derive(Clone, Copy)]
struct Projections(Moments);

impl Elementwise<3, 2> for Projections {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad, weight]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 2] {
        let h = grad * weight;
        [h, h * self.0.normalised(x)]
    }
}

#[derive(Clone, Copy)]
struct InputGradient {
    moments: Moments,
    mean_h: f64,
    mean_hn: f64,
}

impl Elementwise<3, 1> for InputGradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad, weight]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 1] {
        let n = self.moments.normalised(x);
        [(grad * weight - self.mean_h - n * self.mean_hn) * self.moments.scale]
    }
}

/// Terms of the gradients of the weight and, if it is asked for, of the bias.
#[derive(Clone, Copy)]
struct WeightGradient(Moments);

impl Elementwise<2, 2> for WeightGradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 2] {
        [grad * self.0.normalised(x), grad]
    }
}

impl Elementwise<2, 1> for WeightGradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [grad * self.0.normalised(x)]
    }
}
