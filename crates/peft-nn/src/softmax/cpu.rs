use candle_core::{D, DType, Result, Tensor, WithDType, bail};
use num_traits::Float;

use super::NAME;
use crate::attention::Visibility;
use crate::cpu::{Element, dispatch_float, for_each_row, read, sum, value};
use crate::graph::Value;

pub(super) fn probabilities(scores: &Tensor, scale: f64, visibility: Option<&Visibility>) -> Result<Value> {
    match scores.dtype() {
        DType::F32 => probabilities_typed::<f32>(scores, scale, visibility),
        DType::F64 => probabilities_typed::<f64>(scores, scale, visibility),
        DType::BF16 | DType::F16 => {
            probabilities_typed::<f32>(&scores.to_dtype(DType::F32)?, scale, visibility)?.into_dtype(scores.dtype())
        }
        other => bail!("{NAME}: dtype {} is not one of f32, f64, bf16, f16", other.as_str()),
    }
}

pub(super) fn scores_gradient(probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<Tensor> {
    dispatch_float!(NAME, grad, T => scores_gradient_typed::<T>(probabilities, grad, scale))
}

fn probabilities_typed<T: Element<Acc = T> + Float>(
    scores: &Tensor,
    scale: f64,
    visibility: Option<&Visibility>,
) -> Result<Value> {
    let width = scores.dim(D::Minus1)?;
    let elements = read(scores)?;
    let elements = elements.as_slice::<T>()?;
    let rows = elements.len() / width.max(1);
    let padding = visibility.and_then(Visibility::key_padding).map(read).transpose()?;
    let padding = padding.as_ref().map(|padding| padding.as_slice::<u8>()).transpose()?;
    let scale = T::acc(scale);
    let mut p = vec![T::acc(0.0); elements.len()];
    for_each_row(&mut p, width, |i, p| {
        let scores = &elements[i * width..][..width];
        let Some(visibility) = visibility else {
            return softmax_row(scores, scale, |_| true, p);
        };
        let keys = visibility.of_row(i, rows, padding);
        let (scores, p) = (&scores[..keys.end], &mut p[..keys.end]);
        match keys.keep {
            None => softmax_row(scores, scale, |_| true, p),
            Some(keep) => softmax_row(scores, scale, |key| keep[key] != 0, p),
        }
    });
    Ok(value(p, scores.shape()))
}

/// Writes the softmax over the visible keys to `p`, which is zero on entry and stays so elsewhere.
fn softmax_row<T: WithDType + Float>(scores: &[T], scale: T, visible: impl Fn(usize) -> bool, p: &mut [T]) {
    let mut max = None;
    for (key, &score) in scores.iter().enumerate() {
        if visible(key) {
            let score = score * scale;
            max = Some(max.map_or(score, |max| Float::max(max, score)));
        }
    }
    let Some(max) = max else { return };
    let mut total = 0f64;
    for (key, (p, &score)) in p.iter_mut().zip(scores).enumerate() {
        if visible(key) {
            *p = (score * scale - max).exp();
            total += p.to_f64();
        }
    }
    let factor = T::from_f64(total.recip());
    for p in p {
        *p *= factor;
    }
}

fn scores_gradient_typed<T: Element>(probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<Tensor> {
    let width = grad.dim(D::Minus1)?;
    let (p, g) = (read(probabilities)?, read(grad)?);
    let (p, g) = (p.as_slice::<T>()?, g.as_slice::<T>()?);
    let scale = T::acc(scale);
    let mut dscores = vec![T::zero(); p.len()];
    for_each_row(&mut dscores, width, |i, dscores| {
        let (p, g) = (&p[i * width..][..width], &g[i * width..][..width]);
        let dot = sum(p.iter().zip(g).map(|(p, g)| p.widen() * g.widen()));
        for ((dscore, p), g) in dscores.iter_mut().zip(p).zip(g) {
            *dscore = T::narrow(scale * p.widen() * (g.widen() - dot));
        }
    });
    Ok(value(dscores, grad.shape()).into_tensor())
}
