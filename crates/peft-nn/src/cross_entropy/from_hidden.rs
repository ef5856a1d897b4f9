//! The loss from the hidden states and the weight of a frozen output head, some positions at a time.

use candle_core::{Result, Tensor, bail};

use super::targets::Targets;
use super::{CrossEntropy, NAME, SoftmaxMinusOneHot, cross_entropy};
use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join, matmul};
use crate::{WeightLayout, linear};

/// Logits that exist at a time: enough rows for a matrix product to run at its speed, few enough to be no matter of memory.
const LOGITS: usize = 1 << 22;
const FEWEST_ROWS: usize = 32;

/// [`cross_entropy`] of the logits `hidden W^T + bias`, which never exist as a whole.
///
/// `hidden` is `(positions, hidden_size)`, `weight` and `bias` are those of [`linear`], `labels` is `(positions)`. Losses
/// and the gradient of `hidden` are computed together, for some positions at a time, so the largest thing in memory is a
/// few rows of logits and not all of them, their gradient and what lies between; a loss that is not tracked computes no
/// gradient. Where weight or bias are tracked themselves the two operators run after one another.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    labels: &Tensor,
    ignore_index: i64,
) -> Result<CrossEntropy> {
    if weight.track_op() || bias.is_some_and(Tensor::track_op) {
        return cross_entropy(&linear(hidden, weight, layout, bias)?, labels, ignore_index);
    }
    let (vocabulary, hidden_size) = layout.features(weight)?;
    let &[positions, width] = hidden.dims() else {
        bail!("{NAME}: the hidden states are (positions, hidden_size), got {:?}", hidden.dims())
    };
    if width != hidden_size {
        bail!("{NAME}: hidden states of length {width} do not fit a weight for {hidden_size} ({layout:?})");
    }
    ensure_float(NAME, "hidden states", hidden)?;
    ensure_dtype(NAME, "weight", weight, hidden.dtype())?;
    ensure_shape(NAME, "labels tensor", labels, &[positions])?;
    let targets = Targets::new(labels, vocabulary, ignore_index)?;
    let count = targets.count();
    if positions == 0 {
        return cross_entropy(&linear(hidden, weight, layout, bias)?, labels, ignore_index);
    }

    let rows = FEWEST_ROWS.max(LOGITS / vocabulary.max(1));
    let (detached, weight) = (hidden.detach(), weight.detach());
    let out_in = layout.out_in(&weight)?;
    let (mut losses, mut gradients) = (vec![], vec![]);
    for start in (0..positions).step_by(rows) {
        let len = rows.min(positions - start);
        let logits = linear(&detached.narrow(0, start, len)?, &weight, layout, bias)?;
        let (loss, saved) = SoftmaxMinusOneHot::forward(logits, targets.range(start, len))?;
        let loss = loss.into_tensor();
        if hidden.track_op() {
            let dlogits = saved.gradient(&loss.ones_like()?)?;
            gradients.push(matmul(&dlogits, &out_in)?.into_tensor());
        }
        losses.push(loss);
    }
    let losses = Tensor::cat(&losses, 0)?;
    let losses = match gradients.is_empty() {
        true => losses,
        false => {
            let saved = PerPosition { gradients: Tensor::cat(&gradients, 0)? };
            join([Some(hidden)], Value::Tensor(losses), saved)?
        }
    };
    Ok(CrossEntropy { losses, count })
}

/// The gradients of each position's loss with respect to its hidden state: a position's loss depends on no other's.
struct PerPosition {
    gradients: Tensor,
}

impl Backward<1> for PerPosition {
    const NAME: &'static str = NAME;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let grad = grad.to_dtype(self.gradients.dtype())?.unsqueeze(1)?;
        Ok([Some(self.gradients.broadcast_mul(&grad)?)])
    }
}
