use candle_core::{Result, Tensor};
use num_traits::Float;

use super::{LayerNorm, NAME};
use crate::cpu::{Element, dispatch_float, for_each_row, read, sum, sum_rows, value};
use crate::graph::Value;

pub(super) fn forward(op: &LayerNorm, bias: Option<&Tensor>) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => forward_typed::<T>(op, bias))
}

pub(super) fn backward(op: &LayerNorm, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    dispatch_float!(NAME, op.x, T => backward_typed::<T>(op, grad, wanted))
}

/// The mean of one row and `1 / sqrt(variance + eps)`.
fn moments<T: Element>(row: &[T], eps: T::Acc) -> (T::Acc, T::Acc) {
    let width = T::acc(row.len() as f64);
    let mean = sum(row.iter().map(|x| x.widen())) / width;
    let squares = sum(row.iter().map(|x| (x.widen() - mean) * (x.widen() - mean)));
    (mean, (squares / width + eps).sqrt().recip())
}

fn forward_typed<T: Element>(op: &LayerNorm, bias: Option<&Tensor>) -> Result<Value> {
    let (x, weight, bias) = (read(&op.x)?, read(&op.weight)?, bias.map(read).transpose()?);
    let (x, weight) = (x.as_slice::<T>()?, weight.as_slice::<T>()?);
    let bias = bias.as_ref().map(|bias| bias.as_slice::<T>()).transpose()?;
    let width = weight.len();
    let eps = T::acc(op.eps);
    let mut y = vec![T::zero(); x.len()];
    for_each_row(&mut y, width, |i, y| {
        let x = &x[i * width..][..width];
        let (mean, scale) = moments(x, eps);
        for (j, ((y, x), weight)) in y.iter_mut().zip(x).zip(weight).enumerate() {
            let shift = bias.map_or(T::acc(0.0), |bias| bias[j].widen());
            *y = T::narrow((x.widen() - mean) * scale * weight.widen() + shift);
        }
    });
    Ok(value(y, op.x.shape()))
}

/// With `n = (x - mean) * scale` and `h = grad * weight`: `dx = scale * (h - mean(h) - n * mean(h * n))`.
fn backward_typed<T: Element>(op: &LayerNorm, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let (x, weight, grad) = (read(&op.x)?, read(&op.weight)?, read(grad)?);
    let (x, weight, grad) = (x.as_slice::<T>()?, weight.as_slice::<T>()?, grad.as_slice::<T>()?);
    let width = weight.len();
    let rows = x.len().checked_div(width).unwrap_or(0);
    let eps = T::acc(op.eps);
    let row = |i: usize| (&x[i * width..][..width], &grad[i * width..][..width]);

    let dx = wanted[0].then(|| {
        let mut dx = vec![T::zero(); x.len()];
        for_each_row(&mut dx, width, |i, dx| {
            let (x, grad) = row(i);
            let (mean, scale) = moments(x, eps);
            let (mut sum_h, mut sum_hn) = (T::acc(0.0), T::acc(0.0));
            for ((x, grad), weight) in x.iter().zip(grad).zip(weight) {
                let h = grad.widen() * weight.widen();
                sum_h += h;
                sum_hn += h * (x.widen() - mean) * scale;
            }
            let (mean_h, mean_hn) = (sum_h / T::acc(width as f64), sum_hn / T::acc(width as f64));
            for (((dx, x), grad), weight) in dx.iter_mut().zip(x).zip(grad).zip(weight) {
                let n = (x.widen() - mean) * scale;
                *dx = T::narrow(scale * (grad.widen() * weight.widen() - mean_h - n * mean_hn));
            }
        });
        value(dx, op.x.shape()).into_tensor()
    });
    let dweight = wanted[1].then(|| {
        let dweight = sum_rows::<T>(rows, width, |i, sum| {
            let (x, grad) = row(i);
            let (mean, scale) = moments(x, eps);
            for ((sum, x), grad) in sum.iter_mut().zip(x).zip(grad) {
                *sum += grad.widen() * (x.widen() - mean) * scale;
            }
        });
        value(dweight, width).into_tensor()
    });
    let dbias = wanted[2].then(|| {
        let dbias = sum_rows::<T>(rows, width, |i, sum| {
            for (sum, grad) in sum.iter_mut().zip(row(i).1) {
                *sum += grad.widen();
            }
        });
        value(dbias, width).into_tensor()
    });
    Ok([dx, dweight, dbias])
}
