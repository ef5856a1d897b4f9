//! What is asked for, and what comes of it.

use peft_nn::Sampled;
use serde::Serialize;

/// A prompt and how many continuations of it are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The ids of the prompt, at least one.
    pub prompt: &'a [u32],
    /// Number of continuations.
    pub samples: usize,
    /// Which random numbers: those of token `n` of sample `j` follow from the config's seed, this, `j` and `n` alone.
    pub stream: u64,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model wrote a stop token, or a stop string.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
    /// The model has no positions left.
    Context,
}

/// The tokens that follow a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// Every token that was sampled: a stop token as well, and those that a stop string is in.
    pub ids: Vec<u32>,
    /// The logarithm of each token's probability, in nats: that under `softmax(logits / temperature)` over the whole vocabulary,
    /// before anything else changes or cuts the logits. Where the likeliest token is taken the temperature is 1 here.
    pub log_probs: Vec<f32>,
    /// The entropy of the distribution that each of `log_probs` is of, in nats.
    pub entropies: Vec<f32>,
    /// Why there are no more.
    pub finish_reason: FinishReason,
    /// Whether the last token is a stop token.
    #[serde(skip)]
    pub(super) ends_with_stop_id: bool,
}

impl Generation {
    pub(super) fn with_capacity(tokens: usize) -> Self {
        Self {
            ids: Vec::with_capacity(tokens),
            log_probs: Vec::with_capacity(tokens),
            entropies: Vec::with_capacity(tokens),
            finish_reason: FinishReason::Length,
            ends_with_stop_id: false,
        }
    }

    pub(super) fn push(&mut self, sampled: Sampled) {
        self.ids.push(sampled.id);
        self.log_probs.push(sampled.log_prob);
        self.entropies.push(sampled.entropy);
    }

    /// The ids without the stop token at their end, if there is one.
    pub fn text_ids(&self) -> &[u32] {
        match self.ids.split_last() {
            Some((_, text)) if self.ends_with_stop_id => text,
            _ => &self.ids,
        }
    }
}
