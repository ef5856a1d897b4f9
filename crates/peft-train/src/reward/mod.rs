//! Rewards: what a completion is worth.
//!
//! A [`Reward`] scores the samples of a step; [`Rewards`] is a weighted sum of several. [`NumberMatch`] compares a number with the
//! right one, [`RegexMatch`] and [`FormatMatch`] look for patterns, [`LengthPenalty`] discourages long completions, and
//! [`Program`] asks a program of yours.

mod length;
mod number;
mod pattern;
mod program;
mod weighted;

pub use length::LengthPenalty;
pub(crate) use number::marked_number;
pub use number::{AnswerForm, NumberMatch};
pub use pattern::{FormatMatch, RegexMatch};
pub use program::Program;
pub use weighted::{Rewards, Scored};

use crate::error::Result;
use crate::task::Problem;
use std::fmt::Debug;
use std::sync::Arc;

/// One completion of one problem.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Sample<'a> {
    /// What was asked.
    pub problem: &'a Problem,
    /// The prompt as the model saw it: of a chat, what the template made of it.
    pub prompt: &'a str,
    /// What the model wrote.
    pub completion: &'a str,
    /// The tokens of the completion.
    pub tokens: usize,
    /// Whether the completion was cut off at the most tokens allowed.
    pub truncated: bool,
}

impl<'a> Sample<'a> {
    /// A completion of `tokens` tokens that the model ended itself.
    pub fn new(problem: &'a Problem, prompt: &'a str, completion: &'a str, tokens: usize) -> Self {
        Self { problem, prompt, completion, tokens, truncated: false }
    }

    /// The same completion, cut off or not.
    #[must_use]
    pub fn with_truncated(mut self, truncated: bool) -> Self {
        self.truncated = truncated;
        self
    }
}

/// What a reward makes of one sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Score {
    /// The reward.
    Value(f64),
    /// There is none, and why: a program crashed or hung, a pattern took too long.
    Failed(String),
}

/// Something that scores completions.
pub trait Reward: Debug + Send + Sync {
    /// Its name in metrics and reports; of the rewards of one run no two have the same.
    fn name(&self) -> &str;

    /// One score for each sample, in their order.
    ///
    /// # Errors
    /// When no sample can be scored at all. A single sample without a score is [`Score::Failed`].
    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>>;

    /// What a sample counts for that has no score.
    fn on_failure(&self) -> f64 {
        0.0
    }
}

impl<R: Reward + ?Sized> Reward for Arc<R> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        (**self).score(samples)
    }

    fn on_failure(&self) -> f64 {
        (**self).on_failure()
    }
}
