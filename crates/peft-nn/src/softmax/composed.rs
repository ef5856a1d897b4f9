//! The masked softmax written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, DType, Result, Tensor};

use crate::attention::Visibility;
use crate::checks::acc_dtype;

pub(super) fn probabilities(scores: &Tensor, scale: f64, visibility: Option<&Visibility>) -> Result<Tensor> {
    let scaled = (scores.to_dtype(acc_dtype(scores.dtype()))? * scale)?;
    let Some(visibility) = visibility else {
        return normalise(&scaled)?.to_dtype(scores.dtype());
    };
    let visible = visibility.mask(scores)?;
    // The lowest finite value: a row that sees no key is then uniform and not NaN, before it is set to zero.
    let lowest = if scaled.dtype() == DType::F64 { f64::MIN } else { f64::from(f32::MIN) };
    let lowest = Tensor::new(lowest, scores.device())?.to_dtype(scaled.dtype())?.broadcast_as(scores.shape())?;
    let p = normalise(&visible.where_cond(&scaled, &lowest)?)?;
    visible.where_cond(&p, &p.zeros_like()?)?.to_dtype(scores.dtype())
}

fn normalise(scores: &Tensor) -> Result<Tensor> {
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

pub(super) fn scores_gradient(probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<Tensor> {
    let dtype = acc_dtype(grad.dtype());
    let (p, g) = (probabilities.to_dtype(dtype)?, grad.to_dtype(dtype)?);
    let dot = (&p * &g)?.sum_keepdim(D::Minus1)?;
    ((p * g.broadcast_sub(&dot)?)? * scale)?.to_dtype(grad.dtype())
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::attention::AttentionOptions;
    use crate::testing::{DTYPES, assert_close, assert_same_value, sample};

    /// Three queries in each of two groups, five keys, of which left padding hides the first three in the second row of
    /// the batch: its first query then sees nothing.
    fn visibilities() -> Result<Vec<Option<Visibility>>> {
        let padding = Tensor::new(&[[1u8, 1, 1, 1, 1], [0, 0, 0, 1, 1]], &candle_core::Device::Cpu)?;
        [
            AttentionOptions::full(),
            AttentionOptions::causal(),
            AttentionOptions::full().with_key_padding(padding.clone()),
            AttentionOptions::causal().with_key_padding(padding),
        ]
        .iter()
        .map(|options| Visibility::new(options, 2, 3, 5))
        .collect()
    }

    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        for (dtype, tolerance) in DTYPES {
            for visibility in visibilities()? {
                let (scores, visibility) = (sample((2, 2, 6, 5), 0, dtype), visibility.as_ref());
                let composed = probabilities(&scores, 0.6, visibility)?;
                assert_same_value(cpu::probabilities(&scores, 0.6, visibility), Ok(composed.clone()), tolerance);
                let grad = sample((2, 2, 6, 5), 1, dtype);
                let kernel = cpu::scores_gradient(&composed, &grad, 0.6)?;
                assert_close(&kernel, &scores_gradient(&composed, &grad, 0.6)?, tolerance);
            }
        }
        Ok(())
    }
}
