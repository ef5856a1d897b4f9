//! Which completions go through the model together in training.

use crate::sft::ActivationMemory;
use peft_models::CausalLanguageModel;

/// Puts rows of these lengths into batches of at most `tokens` tokens, padding included, and of no more activations than fit into
/// `memory`; at least one row each. The longest come first, so that rows of one batch need little padding and a batch that does not
/// fit the machine fails at once.
pub(super) fn micro_batches(
    lengths: &[usize],
    tokens: usize,
    memory: ActivationMemory,
    model: &impl CausalLanguageModel,
) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| (std::cmp::Reverse(lengths[*row]), *row));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut rest = order.as_slice();
    while let Some(longest) = rest.first() {
        let length = lengths[*longest].max(1);
        let rows = (tokens / length).min(fitting_rows(length, memory, model)).clamp(1, rest.len());
        let (batch, after) = rest.split_at(rows);
        batches.push(batch.to_vec());
        rest = after;
    }
    batches
}

/// How many rows of a length keep all their activations within the limit.
fn fitting_rows(length: usize, memory: ActivationMemory, model: &impl CausalLanguageModel) -> usize {
    match (memory, model.activations(1, length)) {
        (ActivationMemory::Within(bytes), Some(row)) => bytes / (row.blocks * row.block).max(1),
        _ => usize::MAX,
    }
}
