//! A penalty for long completions.

use super::{Reward, Sample, Score};
use crate::error::{Error, Result};

/// The soft punishment of over-long completions of DAPO ([arXiv 2503.14476](https://arxiv.org/abs/2503.14476), equation 13).
///
/// 0 up to `max_tokens - margin` tokens, from there straight down to -1 at `max_tokens`, and -1 beyond.
#[derive(Debug, Clone, PartialEq)]
pub struct LengthPenalty {
    max_tokens: usize,
    margin: usize,
}

impl LengthPenalty {
    /// A penalty that begins `margin` tokens before `max_tokens`.
    ///
    /// # Errors
    /// When the margin is 0 or more than `max_tokens`.
    pub fn new(max_tokens: usize, margin: usize) -> Result<Self> {
        if margin == 0 || margin > max_tokens {
            let message = format!("{margin} tokens; it must be from 1 to max_tokens, which is {max_tokens}");
            return Err(Error::option("margin", message));
        }
        Ok(Self { max_tokens, margin })
    }

    fn of(&self, tokens: usize) -> f64 {
        let free = self.max_tokens - self.margin;
        if tokens <= free { 0.0 } else { -((tokens - free) as f64 / self.margin as f64).min(1.0) }
    }
}

impl Reward for LengthPenalty {
    fn name(&self) -> &str {
        "length"
    }

    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        Ok(samples.iter().map(|sample| Score::Value(self.of(sample.tokens))).collect())
    }
}
