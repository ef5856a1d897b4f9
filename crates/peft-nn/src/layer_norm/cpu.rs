use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{LayerNorm, NAME};
use crate::cpu::simd::{Elementwise, Identity, Lanes, Real, accumulate, sum, write};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, map_rows, read, value};
use crate::graph::Value;

pub(super) fn forward(op: &LayerNorm, bias: Option<&Tensor>) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight, bias) = (read(&op.x)?, read(&op.weight)?, bias.map(read).transpose()?);
        let (x, mut buffers) = (x.as_slice::<T>()?, [vec![], vec![]]);
        let [weight_buffer, bias_buffer] = &mut buffers;
        let weight = T::widened_row(weight.as_slice()?, weight_buffer);
        let bias = bias.as_ref().map(|bias| bias.as_slice::<T>()).transpose()?;
        let bias = bias.map(|bias| T::widened_row(bias, bias_buffer));
        let (rows, width) = shape(x, weight);
        let (y, []) = map_rows(rows, width, Normalised::<T> { x, weight, bias, eps: op.eps });
        Ok(value(y, op.x.shape()))
    })
}

pub(super) fn backward(op: &LayerNorm, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    dispatch_float!(NAME, op.x, T => {
        let (x, weight, grad) = (read(&op.x)?, read(&op.weight)?, read(grad)?);
        let (x, grad, mut buffer) = (x.as_slice::<T>()?, grad.as_slice::<T>()?, vec![]);
        let weight = T::widened_row(weight.as_slice()?, &mut buffer);
        let (rows, width) = shape(x, weight);
        let kernel = Gradients::<T> { x, weight, grad, eps: op.eps };
        let (dx, sums) = if wanted[1] || wanted[2] {
            let (dx, sums) = map_rows::<T, 2>(rows, width, kernel);
            (dx, sums.map(Some))
        } else {
            let (dx, []) = map_rows(rows, width, kernel);
            (dx, [None, None])
        };
        let [dweight, dbias] = sums.map(|sums| sums.map(|sums| value(sums, width).into_tensor()));
        let dx = value(dx, op.x.shape()).into_tensor();
        Ok([wanted[0].then_some(dx), dweight.filter(|_| wanted[1]), dbias.filter(|_| wanted[2])])
    })
}

/// The number of rows and their length.
fn shape<T, A>(x: &[T], weight: &[A]) -> (usize, usize) {
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
    /// Given the sum of the squared distances from the mean.
    fn new(mean: f64, squares: f64, width: usize, eps: f64) -> Self {
        Self { mean, scale: (squares / width as f64 + eps).sqrt().recip() }
    }

    #[inline(always)]
    fn normalised<S: Simd, R: Real>(self, x: Lanes<S, R>) -> Lanes<S, R> {
        (x - self.mean) * self.scale
    }
}

#[inline(always)]
fn mean<S: Simd, R: Real>(simd: S, x: &[R]) -> f64 {
    let [sum] = sum(simd, Identity, [x]);
    sum / x.len() as f64
}

struct Normalised<'a, T: Element> {
    x: &'a [T],
    weight: &'a [T::Acc],
    bias: Option<&'a [T::Acc]>,
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
        let mean = mean(simd, x);
        let [squares] = sum(simd, SquaredDistance { mean }, [x]);
        let moments = Moments::new(mean, squares, width, self.eps);
        match self.bias {
            Some(bias) => write(simd, Affine(moments), [x, self.weight, bias], [out]),
            None => write(simd, Affine(moments), [x, self.weight], [out]),
        }
    }
}

struct Gradients<'a, T: Element> {
    x: &'a [T],
    weight: &'a [T::Acc],
    grad: &'a [T],
    eps: f64,
}

/// With `n` the normalised row and `h = grad * weight`: `dx = scale * (h - mean(h) - n * mean(h * n))`. The gradients of weight and bias are
/// the sums of `grad * n` and `grad`, if they are asked for.
// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element, const SUMS: usize> Rows<T, SUMS> for Gradients<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        mut sums: [&mut [T::Acc]; SUMS],
        [x_buffer, grad_buffer]: &mut Scratch<T>,
    ) {
        let width = self.weight.len();
        let x = T::widened_row(&self.x[index * width..][..width], x_buffer);
        let grad = T::widened_row(&self.grad[index * width..][..width], grad_buffer);
        let mean = mean(simd, x);
        let [squares, h, h_distance] = sum(simd, Projections { mean }, [x, grad, self.weight]);
        let moments = Moments::new(mean, squares, width, self.eps);
        let (mean_h, mean_hn) = (h / width as f64, h_distance * moments.scale / width as f64);
        write(simd, InputGradient { moments, mean_h, mean_hn }, [x, grad, self.weight], [out]);
        if let [dweight, dbias] = &mut sums[..] {
            accumulate(simd, ParameterGradients(moments), [x, grad], [dweight, dbias]);
        }
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

/// The squared distance from the mean, `h`, and its product with the distance.
#[derive(Clone, Copy)]
struct Projections {
    mean: f64,
}

impl Elementwise<3, 3> for Projections {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad, weight]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 3] {
        let (distance, h) = (x - self.mean, grad * weight);
        [distance * distance, h, h * distance]
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

/// Of weight and bias.
#[derive(Clone, Copy)]
struct ParameterGradients(Moments);

impl Elementwise<2, 2> for ParameterGradients {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 2] {
        [grad * self.0.normalised(x), grad]
    }
}
