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
    use crate::testing::{DTYPES, assert_close, assert_same_bits_on_each_arch, assert_same_value, sample};

    /// Three queries in each of two groups, of whose keys left padding hides a few in the second row of the batch: its first query then
    /// sees nothing.
    fn visibilities(keys: usize) -> Result<Vec<Option<Visibility>>> {
        let padding = (0..2 * keys).map(|i| u8::from(i < keys || i >= 2 * keys - 2)).collect();
        let padding = Tensor::from_vec(padding, (2, keys), &candle_core::Device::Cpu)?;
        let holes = (0..2 * keys).map(|i| u8::from(i % 7 > 1)).collect::<Vec<_>>();
        let holes = Tensor::from_vec(holes, (2, keys), &candle_core::Device::Cpu)?;
        [
            AttentionOptions::full(),
            AttentionOptions::causal(),
            AttentionOptions::full().with_key_padding(padding.clone()),
            AttentionOptions::causal().with_key_padding(padding),
            AttentionOptions::causal().with_key_padding(holes),
        ]
        .iter()
        .map(|options| Visibility::new(options, 2, 3, keys))
        .collect()
    }

    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        for (dtype, tolerance) in DTYPES {
            for (keys, scale) in [(5, 0.6), (75, -0.3), (1100, 1.0)] {
                for visibility in visibilities(keys)? {
                    let (scores, visibility) = (sample((2, 2, 6, keys), 0, dtype), visibility.as_ref());
                    let composed = probabilities(&scores, scale, visibility)?;
                    assert_same_value(cpu::probabilities(&scores, scale, visibility), Ok(composed.clone()), tolerance);
                    let grad = sample((2, 2, 6, keys), 1, dtype);
                    let kernel = cpu::scores_gradient(&composed, &grad, scale)?;
                    assert_close(&kernel, &scores_gradient(&composed, &grad, scale)?, tolerance);
                    assert_same_bits_on_each_arch(|| {
                        let p = cpu::probabilities(&scores, scale, visibility)?.into_tensor();
                        Ok(vec![p, cpu::scores_gradient(&composed, &grad, scale)?])
                    });
                }
            }
        }
        Ok(())
    }
}
