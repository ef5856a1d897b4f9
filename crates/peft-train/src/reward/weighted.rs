//! The weighted sum of several rewards.

use super::{Reward, Sample, Score};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Several rewards, each with a weight.
///
/// ```
/// use peft_train::reward::{AnswerForm, LengthPenalty, NumberMatch, Rewards, Sample};
/// use peft_train::task::{Problem, Prompt};
///
/// let rewards = Rewards::new().with(NumberMatch::strict(AnswerForm::Bare), 1.0).with(LengthPenalty::new(8, 4)?, 0.5);
/// let problem = Problem::new(Prompt::Text("12+34=".into()), "46");
/// let scored = rewards.score(&[Sample::new(&problem, "12+34=", "46", 6)])?;
/// assert_eq!((scored[0].total, &scored[0].parts[..]), (0.75, &[1.0, -0.5][..]));
/// # Ok::<(), peft_train::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Rewards {
    parts: Vec<(Arc<dyn Reward>, f64)>,
}

/// What the rewards make of one sample.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scored {
    /// The sum of the parts, each times its weight.
    pub total: f64,
    /// What each reward gave, without its weight, in the order of [`Rewards::names`].
    pub parts: Vec<f64>,
    /// The rewards that had no score for the sample, by their place, and why. Their part is [`Reward::on_failure`].
    pub failures: Vec<(usize, String)>,
}

impl Rewards {
    /// No rewards yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reward.
    #[must_use]
    pub fn with(mut self, reward: impl Reward + 'static, weight: f64) -> Self {
        self.parts.push((Arc::new(reward), weight));
        self
    }

    /// The names of the rewards.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(reward, _)| reward.name())
    }

    /// The weights of the rewards.
    pub fn weights(&self) -> impl Iterator<Item = f64> {
        self.parts.iter().map(|(_, weight)| *weight)
    }

    /// Refuses sums that cannot be computed, as [`score`](Self::score) does: to be asked before a run is begun.
    ///
    /// # Errors
    /// When there are no rewards, two have one name, or a weight or what a failure counts for is not finite.
    pub fn check(&self) -> Result<()> {
        if self.parts.is_empty() {
            return Err(Error::option("rewards", "there are none"));
        }
        for (index, (reward, weight)) in self.parts.iter().enumerate() {
            let name = reward.name();
            if self.names().take(index).any(|earlier| earlier == name) {
                return Err(Error::option("rewards", format!("two of them are named `{name}`")));
            }
            if !weight.is_finite() {
                return Err(Error::option("rewards", format!("the weight of `{name}` is {weight}")));
            }
            let failure = reward.on_failure();
            if !failure.is_finite() {
                return Err(Error::option("rewards", format!("a failure of `{name}` counts for {failure}")));
            }
        }
        Ok(())
    }

    /// One result for each sample, in their order.
    ///
    /// A score that is not finite is a failure.
    ///
    /// # Errors
    /// See [`check`](Self::check); when a reward fails as a whole; when it gives too few or too many scores.
    pub fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Scored>> {
        self.check()?;
        let empty = Scored { total: 0.0, parts: Vec::with_capacity(self.parts.len()), failures: Vec::new() };
        let mut scored = vec![empty; samples.len()];
        for (index, (reward, weight)) in self.parts.iter().enumerate() {
            let scores = reward.score(samples)?;
            if scores.len() != samples.len() {
                let message = format!("it gave {} scores for {} samples", scores.len(), samples.len());
                return Err(Error::reward(reward.name(), message));
            }
            for (scored, score) in scored.iter_mut().zip(scores) {
                let value = match score {
                    Score::Value(value) if value.is_finite() => value,
                    Score::Value(value) => scored.fail(index, &**reward, format!("the reward is {value}")),
                    Score::Failed(reason) => scored.fail(index, &**reward, reason),
                };
                scored.parts.push(value);
                scored.total += weight * value;
            }
        }
        Ok(scored)
    }
}

impl Scored {
    fn fail(&mut self, index: usize, reward: &dyn Reward, reason: String) -> f64 {
        self.failures.push((index, reason));
        reward.on_failure()
    }
}
