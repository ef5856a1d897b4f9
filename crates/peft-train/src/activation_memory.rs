//! How much a step keeps from forward to backward.

use crate::error::{Error, Result};
use peft_models::{CausalLanguageModel, Checkpointing};

/// What a step keeps of the model's blocks from the forward to the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActivationMemory {
    /// What this says, for every batch.
    Fixed(Checkpointing),
    /// As much as fits into so many bytes by the [estimate](CausalLanguageModel::activations) of the model: for each batch, as
    /// few blocks are computed again as possible.
    Within(usize),
}

impl Default for ActivationMemory {
    fn default() -> Self {
        Self::Fixed(Checkpointing::None)
    }
}

impl ActivationMemory {
    /// What to keep of a batch of `(rows, length)` tokens.
    pub(crate) fn checkpointing(
        self,
        model: &impl CausalLanguageModel,
        (rows, length): (usize, usize),
    ) -> Result<Checkpointing> {
        match self {
            Self::Fixed(checkpointing) => Ok(checkpointing),
            Self::Within(bytes) => match model.activations(rows, length) {
                Some(activations) => Ok(activations.within(bytes)),
                None => Err(Error::option("activation_memory", "the model does not say what its blocks keep")),
            },
        }
    }
}
