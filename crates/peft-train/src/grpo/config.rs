//! The options of a run.

use super::advantages::ScaleRewards;
use super::objective::{LossType, Objective};
use crate::activation_memory::ActivationMemory;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::generate::GenerationConfig;
use crate::optim::{AdamWConfig, OptimizerConfig};
use crate::schedule::{Schedule, ScheduleKind};

/// Where rollouts get their weights from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RolloutWeights {
    /// The adapters run beside the base weights.
    #[default]
    Live,
    /// The adapters are merged before the rollouts and taken out again afterwards, exactly.
    Merged,
}

/// What a [`Trainer`](super::Trainer) does; names are TRL's where it has them.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpoConfig {
    /// Steps of the whole run. Each draws completions and then updates the parameters `num_iterations * mini_batches` times.
    pub steps: u64,
    /// Prompts of a step.
    pub prompts_per_step: usize,
    /// Completions of each prompt (`num_generations`).
    pub group_size: usize,
    /// The most tokens of a completion (`max_completion_length`); what the task suggests if it is `None`.
    pub max_new_tokens: Option<usize>,
    /// The temperature of the rollouts. Log-probabilities in training are at the same one.
    pub temperature: f64,
    /// Draws from so many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Draws from the likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Draws from tokens with at least this share of the likeliest one's probability.
    pub min_p: f64,
    /// Divides the logits of tokens that are there already, as in transformers.
    pub repetition_penalty: f64,
    /// The most completions that are generated side by side.
    pub rollout_rows: usize,
    /// Where rollouts get their weights from.
    pub rollout_weights: RolloutWeights,
    /// How the losses of tokens are put together.
    pub loss_type: LossType,
    /// What advantages are divided by.
    pub scale_rewards: ScaleRewards,
    /// How far below 1 the ratio of new to old probabilities may fall.
    pub epsilon: f64,
    /// How far above 1 it may rise; `epsilon` if it is `None`. DAPO has 0.28.
    pub epsilon_high: Option<f64>,
    /// The weight of the divergence from the base model, which is the model with its adapters off.
    pub beta: f64,
    /// How often the completions of a step are gone through.
    pub num_iterations: usize,
    /// Updates in which they are gone through once.
    pub mini_batches: usize,
    /// Over-long filtering: completions that were cut off do not count.
    pub mask_truncated_completions: bool,
    /// Truncated importance sampling: corrects for generation that gives tokens other probabilities than training, as when it is in
    /// another precision; a token counts at most so many times. Off if `None`.
    pub importance_cap: Option<f64>,
    /// The peak of the learning rate.
    pub learning_rate: f64,
    /// The optimizer and its constants.
    pub optimizer: OptimizerConfig,
    /// The course of the learning rate.
    pub schedule: ScheduleKind,
    /// Steps over which the learning rate rises from zero.
    pub warmup_steps: u64,
    /// The greatest norm of an update's gradients; larger ones are scaled down to it.
    pub grad_clip: Option<f64>,
    /// The most tokens, padding included, that go through the model at a time in training. Results differ in rounding.
    pub micro_batch_tokens: usize,
    /// What is kept from forward to backward, and what is computed again. Within a limit, fewer completions go through the model at a
    /// time before activations are computed again.
    pub activation_memory: ActivationMemory,
    /// The seed of problems, sampling and dropout.
    pub seed: u64,
    /// Prompts of each step whose completions are written down.
    pub log_prompts: usize,
}

/// The defaults of TRL's `GRPOConfig`, but for a learning rate of adapters of few numbers, a constant schedule, and 100 steps.
impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            prompts_per_step: 8,
            group_size: 8,
            max_new_tokens: None,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            rollout_rows: 64,
            rollout_weights: RolloutWeights::default(),
            loss_type: LossType::default(),
            scale_rewards: ScaleRewards::default(),
            epsilon: 0.2,
            epsilon_high: None,
            beta: 0.0,
            num_iterations: 1,
            mini_batches: 1,
            mask_truncated_completions: false,
            importance_cap: None,
            learning_rate: 1e-2,
            optimizer: OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() }),
            schedule: ScheduleKind::Constant,
            warmup_steps: 0,
            grad_clip: Some(1.0),
            micro_batch_tokens: 2048,
            activation_memory: ActivationMemory::default(),
            seed: 0,
            log_prompts: 1,
        }
    }
}

impl GrpoConfig {
    /// The completions of a step.
    pub fn completions_per_step(&self) -> usize {
        self.prompts_per_step * self.group_size
    }

    /// Updates of the parameters in a step.
    pub fn updates_per_step(&self) -> usize {
        self.num_iterations * self.mini_batches
    }

    /// The loss of tokens.
    pub fn objective(&self) -> Objective {
        Objective::new(self.epsilon)
            .with_epsilon_high(self.epsilon_high.unwrap_or(self.epsilon))
            .with_beta(self.beta)
            .with_importance_cap(self.importance_cap)
    }

    /// How completions are drawn.
    pub(super) fn generation(&self, max_new_tokens: usize, stop_ids: Vec<u32>) -> GenerationConfig {
        GenerationConfig {
            max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop_ids,
            max_rows: self.rollout_rows,
        }
    }

    /// Refuses values out of range, and makes the schedule.
    pub(super) fn validated_schedule(&self) -> Result<Schedule> {
        let counts = [
            ("steps", self.steps),
            ("prompts_per_step", self.prompts_per_step as u64),
            ("num_iterations", self.num_iterations as u64),
            ("mini_batches", self.mini_batches as u64),
            ("micro_batch_tokens", self.micro_batch_tokens as u64),
            ("rollout_rows", self.rollout_rows as u64),
            ("max_new_tokens", self.max_new_tokens.map_or(1, |n| n as u64)),
        ];
        if let Some((option, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::option(option, "it must be at least 1"));
        }
        if self.group_size < 2 {
            let message =
                format!("{} completions have nothing to be compared with; it must be at least 2", self.group_size);
            return Err(Error::option("group_size", message));
        }
        if self.mini_batches > self.completions_per_step() {
            let message = format!("{} of them for {} completions", self.mini_batches, self.completions_per_step());
            return Err(Error::option("mini_batches", message));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            let message = format!("{} is not a positive number: completions of a prompt must differ", self.temperature);
            return Err(Error::option("temperature", message));
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        for (option, value) in [("grad_clip", self.grad_clip), ("importance_cap", self.importance_cap)] {
            if let Some(value) = value.filter(|value| !positive(*value)) {
                return Err(Error::option(option, format!("{value} is not a positive number")));
            }
        }
        if !(self.epsilon >= 0.0 && self.epsilon < 1.0) {
            return Err(Error::option("epsilon", format!("{} is not in [0, 1)", self.epsilon)));
        }
        let not_negative = [("epsilon_high", self.epsilon_high.unwrap_or(0.0)), ("beta", self.beta)];
        if let Some((option, value)) = not_negative.into_iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0)) {
            return Err(Error::option(option, format!("{value} is not a number of at least 0")));
        }
        let count = |option, steps: u64| {
            usize::try_from(steps).map_err(|_| Error::option(option, format!("{steps} steps are too many")))
        };
        let (warmup, steps) = (count("warmup", self.warmup_steps)?, count("steps", self.steps)?);
        Schedule::new(self.schedule, self.learning_rate, warmup, steps)
    }

    /// Records what a resumed run must have in common with the run it continues.
    ///
    /// The number of steps belongs to it only where the learning rate depends on it, and the rows side by side in rollouts do not:
    /// they change no bit.
    pub(super) fn record(&self, fingerprint: &mut Fingerprint) -> Result<()> {
        if self.schedule != ScheduleKind::Constant {
            fingerprint.record("steps", self.steps);
        }
        fingerprint.record("prompts_per_step", self.prompts_per_step);
        fingerprint.record("group_size", self.group_size);
        fingerprint.record("temperature", self.temperature);
        fingerprint.record("top_k", self.top_k);
        fingerprint.record("top_p", self.top_p);
        fingerprint.record("min_p", self.min_p);
        fingerprint.record("repetition_penalty", self.repetition_penalty);
        fingerprint.record("merged_rollouts", self.rollout_weights == RolloutWeights::Merged);
        fingerprint.record("loss_type", self.loss_type.to_string());
        fingerprint.record("scale_rewards", self.scale_rewards.to_string());
        fingerprint.record("epsilon", self.epsilon);
        fingerprint.record("epsilon_high", self.epsilon_high.unwrap_or(self.epsilon));
        fingerprint.record("beta", self.beta);
        fingerprint.record("num_iterations", self.num_iterations);
        fingerprint.record("mini_batches", self.mini_batches);
        fingerprint.record("mask_truncated_completions", self.mask_truncated_completions);
        fingerprint.record("importance_cap", self.importance_cap);
        fingerprint.record("learning_rate", self.learning_rate);
        fingerprint.record("schedule", self.schedule.to_string());
        fingerprint.record("warmup", self.warmup_steps);
        fingerprint.record("grad_clip", self.grad_clip);
        fingerprint.record("micro_batch_tokens", self.micro_batch_tokens);
        fingerprint.record("seed", self.seed);
        fingerprint.record("log_prompts", self.log_prompts);
        if self.activation_memory != ActivationMemory::default() {
            fingerprint.record("activation_memory", format!("{:?}", self.activation_memory));
        }
        let optimizer = serde_json::to_value(self.optimizer).map_err(peft_core::Error::from)?;
        fingerprint.record_fields("", optimizer);
        Ok(())
    }
}
