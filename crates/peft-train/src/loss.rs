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
        let hidden = targets.select(&hidden)?;
        match head.frozen() {
            Some((weight, layout, bias)) => targets
                .losses(|labels| peft_nn::linear_cross_entropy(&hidden, weight, layout, bias, labels, IGNORE_INDEX)),
            None => {
                let logits = head.forward(&hidden)?;
                targets.losses(|labels| peft_nn::cross_entropy(&logits, labels, IGNORE_INDEX))
            }
        }
    }

    /// The loss of `logits`, `(batch, length, vocabulary)`, for `labels` aligned to the input, `(batch, length)`, i64.
    ///
    /// # Errors
    /// When no token has a loss, the shapes do not agree or a label is outside the vocabulary.
    pub fn of_logits(logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let targets = Targets::new(labels)?;
        let logits = targets.select(logits)?;
        targets.losses(|labels| peft_nn::cross_entropy(&logits, labels, IGNORE_INDEX))
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

/// The positions that predict a token with a loss, in the flattened batch, and those tokens.
struct Targets {
    shape: (usize, usize),
    positions: Tensor,
    labels: Tensor,
    row_counts: Vec<usize>,
}

impl Targets {
    fn new(labels: &Tensor) -> Result<Self> {
        let (batch, length) = labels.dims2()?;
        let (mut positions, mut targets, mut row_counts) = (Vec::new(), Vec::new(), Vec::with_capacity(batch));
        for (row, labels) in labels.to_device(&Device::Cpu)?.to_vec2::<i64>()?.iter().enumerate() {
            let before = targets.len();
            for (column, &label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE_INDEX) {
                positions.push((row * length + column - 1) as i64);
                targets.push(label);
            }
            row_counts.push(targets.len() - before);
        }
        let count = targets.len();
        if count == 0 {
            return Err(Error::option("batch", "no token of it has a loss"));
        }
        let positions = Tensor::from_vec(positions, count, labels.device())?;
        Ok(Self {
            shape: (batch, length),
            positions,
            labels: Tensor::from_vec(targets, count, labels.device())?,
            row_counts,
        })
    }

    /// The vectors at these positions, `(count, n)`, of a tensor `(batch, length, n)`.
    fn select(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = xs.dims3()?;
        if (batch, length) != self.shape {
            let message = format!("its labels are {:?}, but the model's output is {:?}", self.shape, xs.dims());
            return Err(Error::option("batch", message));
        }
        Ok(xs.reshape((batch * length, width))?.index_select(&self.positions, 0)?)
    }

    /// The losses that `of` computes for the labels of what was [selected](Self::select).
    fn losses(self, of: impl FnOnce(&Tensor) -> candle_core::Result<CrossEntropy>) -> Result<NextTokenLoss> {
        Ok(NextTokenLoss { losses: of(&self.labels)?, row_lengths: self.row_counts })
    }
}
