//! The loss of next-token prediction, and what losses of other kinds are made of: the probability of each token.

mod log_probs;
mod targets;

pub use log_probs::TokenLogProbs;

use crate::data::Batch;
use crate::error::Result;
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use peft_models::{CausalLanguageModel, Checkpointing};
use peft_nn::CrossEntropyOptions;
use targets::TokenLosses;
pub(crate) use targets::{elements, head_losses};

/// The cross-entropy of a batch: each token is predicted from those before it.
///
/// The first token of a row is predicted by nothing and has no loss, whatever its label; nor has one labelled
/// [`IGNORE_INDEX`](crate::data::IGNORE_INDEX).
#[derive(Debug, Clone)]
pub struct NextTokenLoss(TokenLosses);

impl NextTokenLoss {
    /// The loss of a model on a batch that is padded on the right. Logits are computed only where they are needed and some at a
    /// time, unless the head has several adapters or one that is no low-rank change of its weight (dropout makes it so in training).
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
        Ok(Self(TokenLosses::of_batch(model, batch, checkpointing, CrossEntropyOptions::default())?))
    }

    /// The loss of `logits`, `(batch, length, vocabulary)`, for `labels` aligned to the input, `(batch, length)`, i64.
    ///
    /// # Errors
    /// When no token has a loss, the shapes do not agree or a label is outside the vocabulary.
    pub fn of_logits(logits: &Tensor, labels: &Tensor) -> Result<Self> {
        Ok(Self(TokenLosses::of_logits(logits, labels, CrossEntropyOptions::default())?))
    }

    /// Number of tokens with a loss.
    pub fn count(&self) -> usize {
        self.0.losses.count()
    }

    /// The sum over all tokens with a loss, in nats: a scalar, tracked if the model is in training mode.
    pub fn sum(&self) -> Result<Tensor> {
        Ok(self.0.losses.sum()?)
    }

    /// The mean over all tokens with a loss, in nats: a scalar, tracked if the model is in training mode.
    pub fn mean(&self) -> Result<Tensor> {
        Ok(self.0.losses.mean()?)
    }

    /// The gradients of `scale` times the [sum](Self::sum).
    ///
    /// # Errors
    /// When an operator cannot compute a gradient.
    pub fn backward(&self, scale: f64) -> Result<GradStore> {
        let losses = self.0.losses.per_token();
        Ok(peft_nn::backward_with(losses, &losses.detach().ones_like()?.affine(scale, 0.0)?)?)
    }

    /// The sum of each row, in nats, added up in f64: the rows beside it do not change it.
    pub fn row_sums(&self) -> Result<Vec<f64>> {
        let losses = elements(self.0.losses.per_token())?;
        Ok(losses.chunks(self.0.row_length().max(1)).map(|row| row.iter().sum()).collect())
    }
}
