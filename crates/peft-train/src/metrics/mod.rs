//! The numbers of a run as a JSONL file.

mod step_lines;

pub use step_lines::StepLines;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One line of a metrics file.
///
/// Only fields that end in `seconds` depend on the clock: all others are the same in a run that was interrupted and
/// resumed as in one that was not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Metrics {
    /// An optimizer step.
    Train(TrainMetrics),
    /// An evaluation after a step.
    Eval(EvalMetrics),
    /// A step of reinforcement learning.
    Grpo(GrpoMetrics),
    /// How often a model solves a task, after a step.
    Accuracy(AccuracyMetrics),
}

/// The numbers of an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// The mean loss per token before the step, in nats.
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens with a loss in the step's batches.
    pub tokens: u64,
    /// Wall-clock time of the step.
    pub seconds: f64,
}

/// The numbers of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// The finished steps; 0 before the first.
    pub step: u64,
    /// The mean loss per token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Tokens with a loss in the evaluation data.
    pub tokens: u64,
    /// Wall-clock time of the evaluation.
    pub seconds: f64,
}

/// The numbers of a step of reinforcement learning; means are over all completions unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GrpoMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// The mean reward.
    pub reward: f64,
    /// The mean over prompts of the standard deviation of a prompt's rewards.
    pub reward_std: f64,
    /// The mean of each reward before it is weighted, by name.
    pub rewards: BTreeMap<String, f64>,
    /// Rewards that could not be computed.
    pub failed_rewards: u64,
    /// The share of completions that are right by the strict reading.
    pub strict: f64,
    /// The share of completions that are right by the flexible reading.
    pub flexible: f64,
    /// Mean tokens of a completion.
    pub completion_tokens: f64,
    /// The share of completions that were cut off.
    pub truncated: f64,
    /// The mean entropy of the distributions that tokens were drawn from, in nats.
    pub entropy: f64,
    /// The mean over tokens of the divergence from the base model, in nats; where it is computed.
    pub kl: Option<f64>,
    /// The share of tokens whose probability had fallen below the lower bound where raising it would have paid.
    pub clip_low: f64,
    /// The share of tokens whose probability had risen above the upper bound where lowering it would have paid.
    pub clip_high: f64,
    /// The mean over tokens of the distance of log-probabilities in training from those in generation, in nats.
    pub rollout_gap: f64,
    /// The loss of the first update.
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The norm of the gradients before clipping, the mean over the updates of the step.
    pub grad_norm: f64,
    /// The share of prompts whose completions all have the same reward: they teach nothing.
    pub zero_advantage: f64,
    /// Generated tokens.
    pub tokens: u64,
    /// Wall-clock time of the step.
    pub seconds: f64,
    /// Wall-clock time of its generation.
    pub rollout_seconds: f64,
}

/// How often a model solves the held-out problems of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AccuracyMetrics {
    /// The finished steps; 0 before the first.
    pub step: u64,
    /// Problems.
    pub problems: u64,
    /// Completions of each problem.
    pub samples: u64,
    /// The temperature they were drawn at; 0 for the likeliest tokens.
    pub temperature: f64,
    /// The share of completions that are right by the strict reading.
    pub strict: f64,
    /// The 95 % interval of `strict` over problems.
    pub strict_interval: [f64; 2],
    /// The share of completions that are right by the flexible reading.
    pub flexible: f64,
    /// The 95 % interval of `flexible` over problems.
    pub flexible_interval: [f64; 2],
    /// Mean tokens of a completion.
    pub completion_tokens: f64,
    /// The share of completions that were cut off.
    pub truncated: f64,
    /// Wall-clock time of the evaluation.
    pub seconds: f64,
}

impl Metrics {
    /// Reads a file of metrics.
    ///
    /// # Errors
    /// When it cannot be read or a line is not one of metrics.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        let parse = |(line, text)| {
            serde_json::from_str(text)
                .map_err(|error| Error::row(path, line + 1, format!("not a line of metrics: {error}")))
        };
        text.lines().enumerate().map(parse).collect()
    }
}
