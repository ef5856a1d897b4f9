//! Cross-entropy of next-token predictions.

mod composed;
mod cpu;
mod distribution;
mod head;
mod options;
mod reduce;
mod targets;

pub use head::{OutputHead, linear_cross_entropy};
pub use options::CrossEntropyOptions;

use candle_core::{Result, Tensor, bail};

use crate::checks::{ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join};
use targets::Targets;

const NAME: &str = "cross-entropy";

/// The label that marks a position which counts for nothing, in PyTorch and in transformers.
pub const IGNORE_INDEX: i64 = -100;

/// The negative log likelihoods of a batch of labels: what [`cross_entropy`] returns.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    losses: Tensor,
    entropies: Option<Tensor>,
    count: usize,
}

impl CrossEntropy {
    /// The loss of each position, in nats and of the shape of the labels; zero where the label is ignored. Tracked if
    /// the logits are: sum it over the last dimension for the loss of each row of a batch.
    pub fn per_token(&self) -> &Tensor {
        &self.losses
    }

    /// The entropy of the distribution at each position, `-sum p log p` in nats, in shape and dtype of the losses; zero where the label
    /// is ignored. Never tracked. None unless they were asked for.
    pub fn entropies(&self) -> Option<&Tensor> {
        self.entropies.as_ref()
    }

    /// The number of labels that are not ignored.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The sum of the losses: a scalar, zero when no label counts.
    pub fn sum(&self) -> Result<Tensor> {
        reduce::sum_divided(&self.losses, 1.0)
    }

    /// The mean loss of the labels that count: a scalar. An error when none does, for which PyTorch gives NaN.
    pub fn mean(&self) -> Result<Tensor> {
        if self.count == 0 {
            bail!("{NAME}: no label counts, all {} are ignored", self.losses.elem_count());
        }
        reduce::sum_divided(&self.losses, self.count as f64)
    }
}

/// `-log softmax(logits)[label]` at every position.
///
/// `logits` is `(.., vocabulary)`; `labels` has an integer dtype and the shape of the logits without their last
/// dimension. Labels equal to `ignore_index` (usually [`IGNORE_INDEX`]) contribute neither loss nor gradient; any other
/// label outside the vocabulary is an error. Nothing is shifted: the caller aligns labels with the positions that
/// predict them. Losses are f64 for f64 logits and f32 otherwise, as is the arithmetic.
///
/// Only the logits and one number for each position are kept for the backward pass, `(softmax - one_hot) * grad`.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, ignore_index: i64) -> Result<CrossEntropy> {
    cross_entropy_with(logits, labels, CrossEntropyOptions::default().with_ignore_index(ignore_index))
}

/// [`cross_entropy()`] of logits times a scale, and the entropies of the distributions on request: what a policy's loss is made of.
pub fn cross_entropy_with(logits: &Tensor, labels: &Tensor, options: CrossEntropyOptions) -> Result<CrossEntropy> {
    let Some((&vocabulary, positions)) = logits.dims().split_last() else {
        bail!("{NAME}: the logits are (.., vocabulary), got a scalar")
    };
    options.check()?;
    ensure_float(NAME, "logits tensor", logits)?;
    ensure_shape(NAME, "labels tensor", labels, positions)?;
    let targets = Targets::new(labels, vocabulary, options.ignore_index)?;
    let count = targets.count();

    let rows = logits.detach().contiguous()?.reshape((positions.iter().product::<usize>(), vocabulary))?;
    let (forward, saved) = SoftmaxMinusOneHot::forward(rows, targets, options)?;
    let entropies = forward.entropies.map(|entropies| entropies.reshape(positions)).transpose()?;
    let losses = join([Some(logits)], forward.losses.reshape(positions)?, saved)?;
    Ok(CrossEntropy { losses, entropies, count })
}

/// What the forward pass finds at each position.
struct Forward {
    losses: Value,
    entropies: Option<Tensor>,
    /// The logarithms of the sums of exponentials.
    log_sum_exp: Tensor,
}

struct SoftmaxMinusOneHot {
    /// `(positions, vocabulary)`, contiguous.
    logits: Tensor,
    /// `(positions)`, in the dtype of the losses.
    log_sum_exp: Tensor,
    targets: Targets,
    scale: f64,
}

impl SoftmaxMinusOneHot {
    /// The losses of detached logits, `(positions, vocabulary)`, and what their gradient needs.
    fn forward(logits: Tensor, targets: Targets, options: CrossEntropyOptions) -> Result<(Forward, Self)> {
        let forward = if logits.device().is_cpu() {
            cpu::forward(&logits, &targets, options)?
        } else {
            composed::forward(&logits, &targets, options)?
        };
        let saved = Self { logits, log_sum_exp: forward.log_sum_exp.clone(), targets, scale: options.logit_scale };
        Ok((forward, saved))
    }
}

impl Backward<1> for SoftmaxMinusOneHot {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let shape = [grad.dims(), &[self.logits.dim(1)?]].concat();
        let grad = grad.flatten_all()?;
        let gradient =
            if grad.device().is_cpu() { cpu::backward(self, &grad)? } else { composed::backward(self, &grad)? };
        Ok([Some(gradient.reshape(shape)?)])
    }
}
