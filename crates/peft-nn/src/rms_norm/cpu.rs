use candle_core::{Result, Tensor};
use num_traits::Float;

use super::{NAME, RmsNorm};
use crate::cpu::{Element, dispatch_float, for_each_row, read, sum, sum_rows, value};
use crate::graph::Value;

pub(super) fn forward(op: &RmsNorm) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => forward_typed::<T>(op))
}

pub(super) fn backward(op: &RmsNorm, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    dispatch_float!(NAME, op.x, T => backward_typed::<T>(op, grad, wanted))
}

/// `1 / sqrt(mean(x^2) + eps)` of one row.
fn scale<T: Element>(row: &[T], eps: T::Acc) -> T::Acc {
    let squares = sum(row.iter().map(|x| x.widen() * x.widen()));
    (squares / T::acc(row.len() as f64) + eps).sqrt().recip()
}

fn forward_typed<T: Element>(op: &RmsNorm) -> Result<Value> {
    let (x, weight) = (read(&op.x)?, read(&op.weight)?);
    let (x, weight) = (x.as_slice::<T>()?, weight.as_slice::<T>()?);
    let width = weight.len();
    let eps = T::acc(op.eps);
    let mut y = vec![T::zero(); x.len()];
    for_each_row(&mut y, width, |i, y| {
        let x = &x[i * width..][..width];
        let scale = scale(x, eps);
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            let normalised = T::narrow(x.widen() * scale);
            *y = T::narrow(normalised.widen() * weight.widen());
        }
    });
    Ok(value(y, op.x.shape()))
}

/// With `n = x * scale` the normalised row and `h = grad * weight`: `dx = scale * (h - n * mean(h * n))`.
fn backward_typed<T: Element>(op: &RmsNorm, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let (x, weight, grad) = (read(&op.x)?, read(&op.weight)?, read(grad)?);
    let (x, weight, grad) = (x.as_slice::<T>()?, weight.as_slice::<T>()?, grad.as_slice::<T>()?);
    let width = weight.len();
    let eps = T::acc(op.eps);
    let row = |i: usize| (&x[i * width..][..width], &grad[i * width..][..width]);

    let dx = wanted[0].then(|| {
        let mut dx = vec![T::zero(); x.len()];
        for_each_row(&mut dx, width, |i, dx| {
            let (x, grad) = row(i);
            let scale = scale(x, eps);
            let dot = sum(x.iter().zip(grad).zip(weight).map(|((x, g), w)| g.widen() * w.widen() * x.widen()));
            let mean = dot * scale / T::acc(width as f64);
            for (((dx, x), grad), weight) in dx.iter_mut().zip(x).zip(grad).zip(weight) {
                *dx = T::narrow(scale * (grad.widen() * weight.widen() - x.widen() * scale * mean));
            }
        });
        value(dx, op.x.shape()).into_tensor()
    });
    let dweight = wanted[1].then(|| {
        let dweight = sum_rows::<T>(x.len().checked_div(width).unwrap_or(0), width, |i, sum| {
            let (x, grad) = row(i);
            let scale = scale(x, eps);
            for ((sum, x), grad) in sum.iter_mut().zip(x).zip(grad) {
                *sum += grad.widen() * x.widen() * scale;
            }
        });
        value(dweight, width).into_tensor()
    });
    Ok([dx, dweight])
}
