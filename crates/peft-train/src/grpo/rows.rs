//! Completions in training.

use super::GrpoConfig;
use super::log_probs::Continuation;
use super::objective::Normalizer;
use super::rollout::Rollouts;
use std::collections::BTreeMap;

/// A completion after its prompt, and what is known of its tokens' log-probabilities.
#[derive(Debug)]
pub(super) struct Row {
    /// The place of its prompt in the step.
    pub(super) place: usize,
    pub(super) prompt: Vec<u32>,
    pub(super) ids: Vec<u32>,
    pub(super) advantage: f64,
    /// When the tokens were drawn.
    pub(super) rollout: Vec<f64>,
    /// By the parameters at the start of the step.
    pub(super) old: Option<Vec<f64>>,
    /// By the base model.
    pub(super) reference: Option<Vec<f64>>,
}

impl Row {
    /// Its ids.
    pub(super) fn continuation(&self) -> Continuation<'_> {
        Continuation { place: self.place, prompt: &self.prompt, ids: &self.ids }
    }
}

/// The completions of a step that go through the model, by their place in the step.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) rows: BTreeMap<usize, Row>,
    /// Tokens of each completion of the step that count, whether or not it goes through the model.
    pub(super) tokens: Vec<usize>,
}

impl Rows {
    /// The completions that count. Without a divergence to pay for, those that are as good as their group move nothing and are left out.
    pub(super) fn new(rollouts: &Rollouts, config: &GrpoConfig) -> Self {
        let mut rows = BTreeMap::new();
        let mut tokens = Vec::with_capacity(rollouts.completions.len());
        for (place, completion) in rollouts.completions.iter().enumerate() {
            let ids = &completion.generation.ids;
            let counts = !(config.mask_truncated_completions && completion.is_truncated());
            tokens.push(if counts { ids.len() } else { 0 });
            if !counts || ids.is_empty() || (config.beta == 0.0 && completion.advantage == 0.0) {
                continue;
            }
            let prompt = &rollouts.prompts[completion.prompt];
            let row = Row {
                place: completion.prompt,
                prompt: prompt.clone(),
                ids: ids.clone(),
                advantage: completion.advantage,
                rollout: completion.generation.log_probs.iter().map(|p| f64::from(*p)).collect(),
                old: None,
                reference: None,
            };
            rows.insert(place, row);
        }
        Self { rows, tokens }
    }

    /// Sets the log-probabilities at the start of the step, in the order of the rows.
    pub(super) fn set_old(&mut self, values: Vec<Vec<f64>>) {
        self.rows.values_mut().zip(values).for_each(|(row, values)| row.old = Some(values));
    }

    /// Sets the log-probabilities by the base model, in the order of the rows.
    pub(super) fn set_reference(&mut self, values: Vec<Vec<f64>>) {
        self.rows.values_mut().zip(values).for_each(|(row, values)| row.reference = Some(values));
    }

    /// The sizes that losses are divided by in an update with these completions of the step.
    pub(super) fn normalizer(&self, completions: &[usize], max_tokens: usize, config: &GrpoConfig) -> Normalizer {
        let tokens = completions.iter().map(|place| self.tokens[*place]).sum();
        Normalizer::new(config.loss_type, completions.len(), max_tokens)
            .with_tokens(tokens)
            .with_step(self.tokens.iter().sum(), config.mini_batches)
    }
}
