//! The model in training: log-probabilities of completions, and the gradients of their loss.

use super::GrpoConfig;
use super::log_probs::{CompletionLogProbs, Continuation};
use super::micro_batches::{micro_batches, token_count};
use super::objective::{Normalizer, TokenProbabilities};
use super::rows::{Row, Rows};
use crate::error::Result;
use crate::optim::Gradients;
use candle_core::backprop::GradStore;
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;
use std::ops::Range;

pub(super) struct Policy<'p, M> {
    pub(super) model: &'p PeftModel<M>,
    pub(super) config: &'p GrpoConfig,
}

/// What one update came to.
#[derive(Debug, Default)]
pub(super) struct Update {
    pub(super) loss: f64,
    /// Tokens that went through the model.
    pub(super) tokens: usize,
    pub(super) clipped_low: usize,
    pub(super) clipped_high: usize,
    /// The sum of the tokens' divergence from the base model.
    pub(super) kl: f64,
    /// The sum of the tokens' distance between log-probabilities in generation and at the start of the step.
    pub(super) gap: f64,
}

impl<M: CausalLanguageModel> Policy<'_, M> {
    /// The log-probabilities of all rows, in their order.
    pub(super) fn log_probs(&self, rows: &Rows) -> Result<Vec<Vec<f64>>> {
        let completions: Vec<Continuation<'_>> = rows.rows.values().map(Row::continuation).collect();
        let mut values = Vec::with_capacity(completions.len());
        for batch in self.batches(&completions) {
            values.extend(self.forward(&completions[batch])?.values()?);
        }
        Ok(values)
    }

    /// Sums the gradients of the loss of these completions of the step. Rows without old log-probabilities keep those of this pass.
    /// `audit` sees each backward pass.
    pub(super) fn update(
        &self,
        rows: &mut Rows,
        completions: &[usize],
        normalizer: Normalizer,
        gradients: &mut Gradients,
        audit: &mut dyn FnMut(&GradStore) -> Result<()>,
    ) -> Result<Update> {
        let objective = self.config.objective();
        let chosen: Vec<(usize, &Row)> =
            completions.iter().filter_map(|place| Some((*place, rows.rows.get(place)?))).collect();
        let continuations: Vec<Continuation<'_>> = chosen.iter().map(|(_, row)| row.continuation()).collect();
        let (mut update, mut seen) = (Update::default(), Vec::new());
        for batch in self.batches(&continuations) {
            let pass = self.forward(&continuations[batch.clone()])?;
            let mut slopes = Vec::new();
            for ((place, row), new) in chosen[batch].iter().zip(pass.values()?) {
                let Row { advantage, rollout, .. } = row;
                let (old, reference) = (row.old.as_deref(), row.reference.as_deref());
                let of_row =
                    objective.completion(TokenProbabilities { new: &new, old, reference, rollout }, *advantage);
                let weight = normalizer.weight(new.len());
                slopes.push(of_row.slopes.iter().map(|slope| weight * slope).collect::<Vec<_>>());
                update.loss += weight * of_row.loss;
                update.tokens += new.len();
                update.clipped_low += of_row.clipped_low;
                update.clipped_high += of_row.clipped_high;
                update.kl += of_row.kl;
                let start = old.unwrap_or(&new);
                update.gap += start.iter().zip(rollout).map(|(start, rollout)| (start - rollout).abs()).sum::<f64>();
                if old.is_none() {
                    seen.push((*place, new));
                }
            }
            let store = pass.backward(&slopes)?;
            // The graph goes before the next one is built.
            drop(pass);
            audit(&store)?;
            gradients.accumulate(&store, 1.0)?;
        }
        for (place, values) in seen {
            if let Some(row) = rows.rows.get_mut(&place) {
                row.old = Some(values);
            }
        }
        Ok(update)
    }

    fn batches(&self, completions: &[Continuation<'_>]) -> Vec<Range<usize>> {
        let GrpoConfig { micro_batch_tokens, activation_memory, .. } = *self.config;
        micro_batches(completions, micro_batch_tokens, activation_memory, self.model.base())
    }

    fn forward(&self, completions: &[Continuation<'_>]) -> Result<CompletionLogProbs> {
        let base = self.model.base();
        let checkpointing = self.config.activation_memory.checkpointing(base, (1, token_count(completions)))?;
        CompletionLogProbs::of(base, completions, self.config.temperature, checkpointing)
    }
}
