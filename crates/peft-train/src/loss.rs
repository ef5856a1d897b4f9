//! The loss of next-token prediction.

use crate::data::{Batch, IGNORE_INDEX};
use crate::error::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor};
use peft_models::{CausalLanguageModel, Checkpointing, ForwardOptions};
use peft_nn::CrossEntropy;

/// The cross-entropy of a batch: each token is predicted from those before it.
///
/// The first token of a row is predicted by nothing and has no loss, whatever its label; nor has one labelled
/// [`IGNORE_INDEX`].
#[derive(Debug, Clone)]
pub struct NextTokenLoss {
    /// Losses of positions, row by row.
    losses: CrossEntropy,
    /// How many of them each row has.
    row_lengths: Vec<usize>,
}

impl NextTokenLoss {
    /// The loss of a model on a batch that is padded on the right. Logits are computed only where they are needed, and for a frozen
    /// head without adapters some at a time.
    ///
    /// # Errors
    /// When no token has a loss, or the model fails.
    pub fn of_batch(model: &(impl CausalLanguageModel + ?Sized), batch: &Batch) -> Result<Self> {
        Self::of_batch_with(model, batch, Checkpointing::None)
    }

    /// As [`of_batch`](Self::of_batch), keeping only some activations of the blocks for the backward.
    ///
    /// # Errors
    /// As [`of_batch`](Self::of_batch).
    pub fn of_batch_with(
        model: &(impl CausalLanguageModel + ?Sized),
        batch: &Batch,
        checkpointing: Checkpointing,
    ) -> Result<Self> {
        let hidden = model.hidden(&batch.input_ids, ForwardOptions::all().with_checkpointing(checkpointing))?;
        let (targets, head) = (Targets::new(&batch.labels)?, model.head());
        match head.frozen() {
            Some((weight, layout, bias)) => targets.losses(&hidden, |hidden, labels| {
                peft_nn::linear_cross_entropy(hidden, weight, layout, bias, labels, IGNORE_INDEX)
            }),
            None => targets
                .losses(&head.forward(&hidden)?, |logits, labels| peft_nn::cross_entropy(logits, labels, IGNORE_INDEX)),
        }
    }

    /// The loss of `logits`, `(batch, length, vocabulary)`, for `labels` aligned to the input, `(batch, length)`, i64.
    ///
    /// # Errors
    /// When no token has a loss, the shapes do not agree or a label is outside the vocabulary.
    pub fn of_logits(logits: &Tensor, labels: &Tensor) -> Result<Self> {
        Targets::new(labels)?.losses(logits, |logits, labels| peft_nn::cross_entropy(logits, labels, IGNORE_INDEX))
    }

    /// Number of tokens with a loss.
    pub fn count(&self) -> usize {
        self.losses.count()
    }

    /// The sum over all tokens with a loss, in nats: a scalar, tracked if the model is in training mode.
    pub fn sum(&self) -> Result<Tensor> {
        Ok(self.losses.sum()?)
    }

    /// The mean over all tokens with a loss, in nats: a scalar, tracked if the model is in training mode.
    pub fn mean(&self) -> Result<Tensor> {
        Ok(self.losses.mean()?)
    }

    /// The gradients of `scale` times the [sum](Self::sum).
    ///
    /// # Errors
    /// When an operator cannot compute a gradient.
    pub fn backward(&self, scale: f64) -> Result<GradStore> {
        let losses = self.losses.per_token();
        Ok(peft_nn::backward_with(losses, &losses.detach().ones_like()?.affine(scale, 0.0)?)?)
    }

    /// The sum of each row, in nats, added up in f64: the rows beside it do not change it.
    pub fn row_sums(&self) -> Result<Vec<f64>> {
        let losses = self.losses.per_token().detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?;
        let losses = losses.to_vec1::<f64>()?;
        let mut rest = losses.as_slice();
        let mut sums = Vec::with_capacity(self.row_lengths.len());
        for &length in &self.row_lengths {
            let (row, after) = rest.split_at(length.min(rest.len()));
            sums.push(row.iter().sum());
            rest = after;
        }
        Ok(sums)
    }
}

/// The token that each position predicts, where that has a loss.
struct Targets {
    /// `(batch, length)`: the labels one position earlier, [`IGNORE_INDEX`] at the last.
    labels: Tensor,
    length: usize,
}

impl Targets {
    fn new(labels: &Tensor) -> Result<Self> {
        let (batch, length) = labels.dims2()?;
        let mut targets = Vec::with_capacity(batch * length);
        for row in labels.to_device(&Device::Cpu)?.to_vec2::<i64>()? {
            targets.extend(row.into_iter().skip(1).chain([IGNORE_INDEX]));
        }
        if targets.iter().all(|target| *target == IGNORE_INDEX) {
            return Err(Error::option("batch", "no token of it has a loss"));
        }
        Ok(Self { labels: Tensor::from_vec(targets, (batch, length), labels.device())?, length })
    }

    /// The losses that `of` computes for these targets from what a model made of each position, `(batch, length, n)`.
    fn losses(
        self,
        xs: &Tensor,
        of: impl FnOnce(&Tensor, &Tensor) -> candle_core::Result<CrossEntropy>,
    ) -> Result<NextTokenLoss> {
        let (batch, length, _) = xs.dims3()?;
        if [batch, length] != self.labels.dims() {
            let message = format!("its labels are {:?}, but the model's output is {:?}", self.labels.dims(), xs.dims());
            return Err(Error::option("batch", message));
        }
        Ok(NextTokenLoss { losses: of(xs, &self.labels)?, row_lengths: vec![self.length; batch] })
    }
}
