//! The operators one after another: the specification, and the path of devices without a kernel, where all logits exist.

use candle_core::{Result, Tensor};

use super::OutputHead;
use crate::{CrossEntropy, CrossEntropyOptions, linear, linear_low_rank};

pub(super) fn cross_entropy(
    head: &OutputHead<'_>,
    hidden: &Tensor,
    labels: &Tensor,
    options: CrossEntropyOptions,
) -> Result<CrossEntropy> {
    let width = hidden.dims()[hidden.rank() - 1];
    let hidden = hidden.reshape((labels.elem_count(), width))?;
    let logits = match head.low_rank {
        Some(change) => linear_low_rank(&hidden, head.weight, head.layout, head.bias, change)?,
        None => linear(&hidden, head.weight, head.layout, head.bias)?,
    };
    let vocabulary = logits.dim(1)?;
    crate::cross_entropy_with(&logits.reshape([labels.dims(), &[vocabulary]].concat())?, labels, options)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::pass::tests::PASSES;
    use super::*;
    use crate::testing::{assert_close, assert_same_bits_on_each_arch, sample};
    use crate::{IGNORE_INDEX, LowRank, WeightLayout};

    /// More positions than a block has, and more entries than a piece has of them; the last of both are smaller.
    const POSITIONS: usize = 74;
    const VOCABULARY: usize = 1000;
    const HIDDEN: usize = 5;

    /// A quarter of the positions is ignored.
    fn labels() -> Result<Tensor> {
        let label = |i: usize| if i % 4 == 3 { IGNORE_INDEX } else { (i * 997 % VOCABULARY) as i64 };
        Tensor::from_vec((0..POSITIONS).map(label).collect(), (2, POSITIONS / 2), &Device::Cpu)
    }

    /// Hidden states, weight, bias, a, b and mixing; the first of `dtypes` is theirs, the second that of the change.
    fn vars([dtype, of_change]: [DType; 2], layout: WeightLayout) -> Result<[Var; 6]> {
        // Small, so that a logit rounded otherwise in 16 bits makes no other probability.
        let own = |shape: &[usize], seed, dtype| Var::from_tensor(&(sample(shape, seed, dtype) * 0.25)?);
        let weight = own(&[VOCABULARY, HIDDEN], 1, dtype)?;
        let weight = match layout {
            WeightLayout::OutIn => weight,
            WeightLayout::InOut => Var::from_tensor(&weight.t()?.contiguous()?)?,
        };
        let hidden = own(&[2, POSITIONS / 2, HIDDEN], 0, dtype)?;
        let (a, b) = (own(&[2, HIDDEN], 3, of_change)?, own(&[VOCABULARY, 2], 4, of_change)?);
        Ok([hidden, weight, own(&[VOCABULARY], 2, dtype)?, a, b, own(&[2, 2], 5, of_change)?])
    }

    /// Losses, entropies and the gradients of whichever are tracked.
    fn run(
        vars: &[Var; 6],
        layout: WeightLayout,
        tracked: [bool; 6],
        composed: bool,
        uniform: bool,
    ) -> Result<Vec<Tensor>> {
        let labels = labels()?;
        let tensors = [0, 1, 2, 3, 4, 5]
            .map(|i| if tracked[i] { vars[i].as_tensor().clone() } else { vars[i].as_detached_tensor() });
        let [hidden, weight, bias, a, b, mixing] = tensors;
        let change = LowRank::new(a, b).with_mixing(mixing).with_scale(0.7);
        let head = OutputHead::new(&weight, layout).with_bias(Some(&bias)).with_low_rank(Some(&change));
        let head = head.with_logit_scale(0.8).with_entropies();
        let losses = match composed {
            true => cross_entropy(&head, &hidden, &labels, head.options)?,
            false => head.cross_entropy(&hidden, &labels, IGNORE_INDEX)?,
        };
        let per_token = losses.per_token();
        let grad = match uniform {
            true => (per_token.ones_like()? * 0.01)?,
            false => (sample(labels.shape(), 5, per_token.dtype()) * 0.01)?,
        };
        let grads = crate::backward_with(per_token, &grad)?;
        assert_eq!(grads.get_ids().count(), tracked.iter().filter(|tracked| **tracked).count());
        let of_vars = vars.iter().filter_map(|var| grads.get(var).cloned());
        Ok([per_token.clone()].into_iter().chain(losses.entropies().cloned()).chain(of_vars).collect())
    }

    const ALL: [bool; 6] = [true; 6];
    /// What has no part for each entry of the vocabulary.
    const NO_ENTRIES: [bool; 6] = [true, false, false, true, false, true];

    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        use DType::{BF16, F16, F32, F64};
        for (dtypes, tolerance) in [
            ([F64, F64], 1e-11),
            ([F32, F32], 2e-5),
            ([BF16, BF16], 1.0 / 64.0),
            ([BF16, F32], 1.0 / 64.0),
            ([F16, F32], 1.0 / 512.0),
        ] {
            for (layout, uniform) in [(WeightLayout::OutIn, true), (WeightLayout::InOut, false)] {
                let vars = vars(dtypes, layout)?;
                for tracked in [ALL, NO_ENTRIES, [true, false, false, false, false, false]] {
                    for uniform in [uniform, !uniform] {
                        let [kernel, composed] =
                            [false, true].map(|composed| run(&vars, layout, tracked, composed, uniform));
                        for (kernel, composed) in kernel?.iter().zip(&composed?) {
                            assert_close(kernel, composed, tolerance);
                        }
                    }
                }
                assert_same_bits_on_each_arch(|| run(&vars, layout, NO_ENTRIES, false, uniform));
            }
        }
        Ok(())
    }

    /// Whether rows of logits are read piece by piece or whole.
    #[test]
    fn pieces_give_the_losses_of_whole_rows() -> Result<()> {
        for dtype in [DType::F32, DType::BF16] {
            let vars = vars([dtype; 2], WeightLayout::OutIn)?;
            let [pieces, whole] =
                [NO_ENTRIES, ALL].map(|tracked| run(&vars, WeightLayout::OutIn, tracked, false, true));
            let (pieces, whole) = (pieces?, whole?);
            for (pieces, whole) in pieces[..2].iter().zip(&whole[..2]) {
                assert_close(pieces, whole, 1e-6);
            }
        }
        Ok(())
    }

    /// Losses that count differently, as those of a policy do.
    #[test]
    fn logits_are_computed_once_unless_gradients_have_parts_for_entries() -> Result<()> {
        let vars = vars([DType::F32; 2], WeightLayout::OutIn)?;
        let passes = |tracked, uniform| {
            let before = PASSES.get();
            run(&vars, WeightLayout::OutIn, tracked, false, uniform).map(|_| PASSES.get() - before)
        };
        let hidden = [true, false, false, false, false, false];
        assert_eq!((passes(hidden, false)?, passes(NO_ENTRIES, false)?), (1, 1));
        assert_eq!((passes(ALL, true)?, passes(ALL, false)?), (1, 2));
        Ok(())
    }
}
