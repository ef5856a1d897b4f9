//! The operators one after another: the specification, and the path of devices without a kernel, where all logits exist.

use candle_core::{Result, Tensor};

use super::OutputHead;
use crate::{CrossEntropy, CrossEntropyOptions, WeightLayout, add, linear};

pub(super) fn cross_entropy(
    head: &OutputHead<'_>,
    hidden: &Tensor,
    labels: &Tensor,
    options: CrossEntropyOptions,
) -> Result<CrossEntropy> {
    let width = hidden.dims()[hidden.rank() - 1];
    let hidden = hidden.reshape((labels.elem_count(), width))?;
    let logits = linear(&hidden, head.weight, head.layout, head.bias)?;
    let logits = match head.low_rank {
        Some((a, b, scale)) => {
            let low = (linear(&hidden, a, WeightLayout::OutIn, None)? * scale)?;
            add(&logits, &linear(&low, b, WeightLayout::OutIn, None)?)?
        }
        None => logits,
    };
    let vocabulary = logits.dim(1)?;
    crate::cross_entropy_with(&logits.reshape([labels.dims(), &[vocabulary]].concat())?, labels, options)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::pass::LOGITS;
    use super::*;
    use crate::IGNORE_INDEX;
    use crate::testing::{assert_close, sample};

    const VOCABULARY: usize = 1 << 10;
    const HIDDEN: usize = 3;

    /// Loss and gradients of hidden states, weight, bias, a and b.
    fn run(dtype: DType, layout: WeightLayout, composed: bool, uniform: bool) -> Result<Vec<Tensor>> {
        // More positions than logits are made of at a time, a quarter of them ignored.
        let positions = 2 * LOGITS / VOCABULARY + 20;
        let label = |i: usize| if i % 4 == 3 { IGNORE_INDEX } else { (i * 997 % VOCABULARY) as i64 };
        let labels = Tensor::from_vec((0..positions).map(label).collect(), (2, positions / 2), &Device::Cpu)?;
        // Small, so that a logit rounded otherwise in 16 bits makes no other probability.
        let var = |shape: &[usize], seed| Var::from_tensor(&(sample(shape, seed, dtype) * 0.25)?);
        let weight = var(&[VOCABULARY, HIDDEN], 1)?;
        let weight = match layout {
            WeightLayout::OutIn => weight,
            WeightLayout::InOut => Var::from_tensor(&weight.t()?.contiguous()?)?,
        };
        let hidden = var(&[2, positions / 2, HIDDEN], 0)?;
        let (bias, a, b) = (var(&[VOCABULARY], 2)?, var(&[2, HIDDEN], 3)?, var(&[VOCABULARY, 2], 4)?);
        // candle joins three inputs, so they are tracked in turn.
        let mut results = vec![];
        for tracked in [[true, true, true, false, false], [true, false, false, true, true]] {
            let vars = [&hidden, &weight, &bias, &a, &b];
            let tensors = [0, 1, 2, 3, 4]
                .map(|i| if tracked[i] { vars[i].as_tensor().clone() } else { vars[i].as_detached_tensor() });
            let [h, w, bias, a, b] = &tensors;
            let head = OutputHead::new(w, layout)
                .with_bias(Some(bias))
                .with_low_rank(a, b, 0.7)
                .with_logit_scale(0.8)
                .with_entropies();
            let losses = match composed {
                true => cross_entropy(&head, h, &labels, head.options)?,
                false => head.cross_entropy(h, &labels, IGNORE_INDEX)?,
            };
            let loss = match uniform {
                true => losses.mean()?,
                false => (losses.per_token() * sample(labels.shape(), 5, losses.per_token().dtype()))?.sum_all()?,
            };
            let grads = loss.backward()?;
            results.push(losses.per_token().clone());
            results.extend(losses.entropies().cloned());
            results.extend(vars.iter().filter_map(|var| grads.get(var).cloned()));
            assert_eq!(results.len() % 5, 0);
        }
        Ok(results)
    }

    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        for (dtype, tolerance) in
            [(DType::F64, 1e-11), (DType::F32, 2e-5), (DType::BF16, 1.0 / 64.0), (DType::F16, 1.0 / 512.0)]
        {
            for (layout, uniform) in [(WeightLayout::OutIn, true), (WeightLayout::InOut, false)] {
                let (kernel, composed) = (run(dtype, layout, false, uniform)?, run(dtype, layout, true, uniform)?);
                for (kernel, composed) in kernel.iter().zip(&composed) {
                    assert_close(kernel, composed, tolerance);
                }
            }
        }
        Ok(())
    }
}
