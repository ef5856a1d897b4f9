//! The policy loss of tokens, and its slope.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the losses of tokens are put together, as TRL names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossType {
    /// The mean over completions of the mean over a completion's tokens (DeepSeekMath, arXiv 2402.03300): tokens of short completions
    /// count more.
    Grpo,
    /// The sum over tokens, divided by completions times the most tokens of one (Dr. GRPO, arXiv 2503.20783): no completion counts more
    /// or less for its length.
    DrGrpo,
    /// The mean over all tokens of the step (DAPO, arXiv 2503.14476).
    #[default]
    Dapo,
    /// The mean over the tokens of an update (BNPO); as `dapo` where a step has one update.
    Bnpo,
}

impl LossType {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::Grpo, Self::DrGrpo, Self::Dapo, Self::Bnpo];

    fn name(self) -> &'static str {
        match self {
            Self::Grpo => "grpo",
            Self::DrGrpo => "dr_grpo",
            Self::Dapo => "dapo",
            Self::Bnpo => "bnpo",
        }
    }
}

impl fmt::Display for LossType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LossType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::option("loss_type", format!("`{name}` is not one of {names}"))
        })
    }
}

/// The policy loss; all probabilities are natural logarithms.
///
/// With `r = p / p_old` of a token and `A` the advantage of its completion, a token has the loss
///
/// ```text
/// -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) * min(p_old / p_rollout, importance_cap) + beta * k
/// k = p_ref / p - ln(p_ref / p) - 1
/// ```
///
/// where the second factor is there if rollouts may differ from training (truncated importance sampling), and `k` estimates the
/// divergence from the base model without bias and is never negative (arXiv 2402.03300, equation 4).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Objective {
    /// How far below 1 `r` may fall and still be lowered.
    pub epsilon: f64,
    /// How far above 1 `r` may rise and still be raised.
    pub epsilon_high: f64,
    /// The weight of the divergence from the base model.
    pub beta: f64,
    /// The most that a token counts for being likelier in training than it was in generation.
    pub importance_cap: Option<f64>,
}

/// The natural logarithms of the probabilities of a completion's tokens; slices have one entry for each token.
#[derive(Debug, Clone, Copy)]
pub struct TokenProbabilities<'a> {
    /// By the parameters that are being trained.
    pub new: &'a [f64],
    /// By the parameters at the start of the step; `None` where they are the same.
    pub old: Option<&'a [f64]>,
    /// By the base model. Needed where the divergence counts.
    pub reference: Option<&'a [f64]>,
    /// When the tokens were drawn. Needed for importance sampling.
    pub rollout: &'a [f64],
}

/// What the tokens of a completion come to.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct CompletionLoss {
    /// The sum of the tokens' losses.
    pub loss: f64,
    /// The slope of each token's loss by its log-probability `new`.
    pub slopes: Vec<f64>,
    /// Tokens that were clipped from below.
    pub clipped_low: usize,
    /// Tokens that were clipped from above.
    pub clipped_high: usize,
    /// The sum of the tokens' divergence from the base model, where it is known.
    pub kl: f64,
}

impl Objective {
    /// The loss with these bounds on both sides, and nothing else.
    pub fn new(epsilon: f64) -> Self {
        Self { epsilon, epsilon_high: epsilon, beta: 0.0, importance_cap: None }
    }

    /// With another upper bound.
    #[must_use]
    pub fn with_epsilon_high(mut self, epsilon_high: f64) -> Self {
        self.epsilon_high = epsilon_high;
        self
    }

    /// With the divergence from the base model.
    #[must_use]
    pub fn with_beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }

    /// With truncated importance sampling, if there is a cap.
    #[must_use]
    pub fn with_importance_cap(mut self, importance_cap: Option<f64>) -> Self {
        self.importance_cap = importance_cap;
        self
    }

    /// The loss of one completion whose advantage is `advantage`, not yet divided by anything.
    pub fn completion(&self, tokens: TokenProbabilities<'_>, advantage: f64) -> CompletionLoss {
        let (low, high) = (1.0 - self.epsilon, 1.0 + self.epsilon_high);
        let mut sum = CompletionLoss::default();
        for (t, &new) in tokens.new.iter().enumerate() {
            let old = tokens.old.map_or(new, |old| old[t]);
            let ratio = (new - old).exp();
            let (free, clipped) = (ratio * advantage, ratio.clamp(low, high) * advantage);
            let weight = self.importance_cap.map_or(1.0, |cap| (old - tokens.rollout[t]).exp().min(cap));
            let mut loss = -free.min(clipped) * weight;
            // Within the bounds both are the same; beyond them the clipped one has no slope.
            let mut slope = if free <= clipped { -free * weight } else { 0.0 };
            sum.clipped_low += usize::from(ratio < low && advantage < 0.0);
            sum.clipped_high += usize::from(ratio > high && advantage > 0.0);
            if let Some(reference) = tokens.reference {
                let distance = reference[t] - new;
                let kl = distance.exp() - distance - 1.0;
                sum.kl += kl;
                loss += self.beta * kl;
                slope += self.beta * (1.0 - distance.exp());
            }
            sum.loss += loss;
            sum.slopes.push(slope);
        }
        sum
    }
}

/// The sizes that losses are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Normalizer {
    /// How the losses of tokens are put together.
    pub loss_type: LossType,
    /// Completions of the update.
    pub completions: usize,
    /// Tokens of the update.
    pub tokens: usize,
    /// Tokens of the step.
    pub step_tokens: usize,
    /// Updates that go once through the completions of the step.
    pub updates: usize,
    /// The most tokens a completion may have.
    pub max_tokens: usize,
}

impl Normalizer {
    /// For an update of so many completions, of at most `max_tokens` tokens each.
    pub fn new(loss_type: LossType, completions: usize, max_tokens: usize) -> Self {
        Self { loss_type, completions, tokens: 0, step_tokens: 0, updates: 1, max_tokens }
    }

    /// With the tokens of the update.
    #[must_use]
    pub fn with_tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }

    /// With the tokens of the step, which goes through its completions in so many updates.
    #[must_use]
    pub fn with_step(mut self, tokens: usize, updates: usize) -> Self {
        self.step_tokens = tokens;
        self.updates = updates;
        self
    }

    /// What each token's loss of a completion of `length` tokens counts.
    pub fn weight(&self, length: usize) -> f64 {
        let (completions, length) = (self.completions as f64, length.max(1) as f64);
        match self.loss_type {
            LossType::Grpo => 1.0 / (completions * length),
            LossType::DrGrpo => 1.0 / (completions * self.max_tokens.max(1) as f64),
            LossType::Dapo => self.updates as f64 / self.step_tokens.max(1) as f64,
            LossType::Bnpo => 1.0 / self.tokens.max(1) as f64,
        }
    }
}
