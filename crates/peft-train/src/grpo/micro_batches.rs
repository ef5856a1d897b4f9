//! Which completions go through the model together in training.

use super::log_probs::Continuation;
use crate::activation_memory::ActivationMemory;
use peft_models::CausalLanguageModel;
use std::ops::Range;

/// Splits completions, in their order, into runs of at most `tokens` tokens, shared prompts counted once, and of no more activations
/// than fit into `memory`; at least one completion each.
pub(super) fn micro_batches(
    completions: &[Continuation<'_>],
    tokens: usize,
    memory: ActivationMemory,
    model: &impl CausalLanguageModel,
) -> Vec<Range<usize>> {
    let limit = match (memory, model.activations(1, 1)) {
        (ActivationMemory::Within(bytes), Some(token)) => tokens.min(bytes / (token.blocks * token.block).max(1)),
        _ => tokens,
    };
    let mut batches: Vec<Range<usize>> = Vec::new();
    for index in 0..completions.len() {
        match batches.last_mut() {
            Some(batch) if token_count(&completions[batch.start..index + 1]) <= limit => batch.end += 1,
            _ => batches.push(index..index + 1),
        }
    }
    batches
}

/// The tokens of completions that go through the model together.
pub(super) fn token_count(completions: &[Continuation<'_>]) -> usize {
    let mut last = None;
    let tokens = |completion: &Continuation<'_>| {
        let is_new = last.replace(completion.place) != Some(completion.place);
        completion.ids.len() + if is_new { completion.prompt.len() } else { 0 }
    };
    completions.iter().map(tokens).sum()
}
