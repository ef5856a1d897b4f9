//! The model in training: log-probabilities of completions, and the gradients of their loss.

use super::GrpoConfig;
use super::micro_batches::micro_batches;
use super::objective::{Normalizer, TokenProbabilities};
use super::rows::{Row, Rows};
use crate::data::Batch;
use crate::error::Result;
use crate::loss::TokenLogProbs;
use crate::optim::Gradients;
use candle_core::backprop::GradStore;
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;

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
        let rows: Vec<&Row> = rows.rows.values().collect();
        let mut values = vec![Vec::new(); rows.len()];
        for batch in self.batches(&rows) {
            let examples: Vec<&Row> = batch.iter().map(|row| rows[*row]).collect();
            let of_batch = self.forward(&examples)?.rows();
            batch.into_iter().zip(of_batch).for_each(|(row, of_row)| values[row] = of_row);
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
        let places: Vec<usize> = completions.iter().copied().filter(|place| rows.rows.contains_key(place)).collect();
        let chosen: Vec<&Row> = places.iter().filter_map(|place| rows.rows.get(place)).collect();
        let (mut update, mut seen) = (Update::default(), Vec::new());
        for batch in self.batches(&chosen) {
            let examples: Vec<&Row> = batch.iter().map(|row| chosen[*row]).collect();
            let pass = self.forward(&examples)?;
            let mut slopes = Vec::new();
            for ((row, new), index) in examples.into_iter().zip(pass.rows()).zip(&batch) {
                let Row { advantage, rollout, .. } = row;
                let (old, reference) = (row.old.as_deref(), row.reference.as_deref());
                let of_row = objective.completion(TokenProbabilities { new: &new, old, reference, rollout }, *advantage);
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
                    seen.push((places[*index], new));
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

    fn batches(&self, rows: &[&Row]) -> Vec<Vec<usize>> {
        let lengths: Vec<usize> = rows.iter().map(|row| row.encoded.ids.len()).collect();
        let GrpoConfig { micro_batch_tokens, activation_memory, .. } = *self.config;
        micro_batches(&lengths, micro_batch_tokens, activation_memory, self.model.base())
    }

    fn forward(&self, rows: &[&Row]) -> Result<TokenLogProbs> {
        let base = self.model.base();
        // Any id will do for padding: nothing that counts attends to it.
        let batch = Batch::collate(rows.iter().map(|row| &row.encoded), 0, &base.device())?;
        let checkpointing = self.config.activation_memory.checkpointing(base, batch.input_ids.dims2()?)?;
        TokenLogProbs::of_batch_with(base, &batch, self.config.temperature, checkpointing)
    }
}
