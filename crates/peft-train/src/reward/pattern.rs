//! Rewards that are patterns.

use super::{Reward, Sample, Score};
use crate::error::{Error, Result};
use fancy_regex::Regex;

/// 1 where a pattern occurs in the completion, else 0.
///
/// A pattern is a regular expression of the `fancy-regex` crate, that is with look-around and backreferences. Where matching
/// takes too many steps, as it can with those, the sample has no score.
#[derive(Debug, Clone)]
pub struct RegexMatch {
    name: String,
    pattern: Regex,
}

impl RegexMatch {
    /// A reward of this name for this pattern.
    ///
    /// # Errors
    /// When the pattern does not parse.
    pub fn new(name: impl Into<String>, pattern: &str) -> Result<Self> {
        let name = name.into();
        Ok(Self { pattern: compile(&name, pattern)?, name })
    }
}

impl Reward for RegexMatch {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        Ok(samples.iter().map(|sample| is_match(&self.pattern, sample.completion)).collect())
    }
}

/// 1 where a pattern matches the whole completion, else 0. For patterns see [`RegexMatch`].
///
/// A dot matches line breaks only in a pattern that begins with `(?s)`.
#[derive(Debug, Clone)]
pub struct FormatMatch {
    name: String,
    pattern: Regex,
}

impl FormatMatch {
    /// A reward of this name for this pattern.
    ///
    /// # Errors
    /// When the pattern does not parse.
    pub fn new(name: impl Into<String>, pattern: &str) -> Result<Self> {
        let name = name.into();
        // By itself first: `a)(b` would be a pattern only inside the group.
        compile(&name, pattern)?;
        Ok(Self { pattern: compile(&name, &format!(r"\A(?:{pattern})\z"))?, name })
    }
}

impl Reward for FormatMatch {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        Ok(samples.iter().map(|sample| is_match(&self.pattern, sample.completion)).collect())
    }
}

fn compile(name: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| Error::reward(name, format!("bad pattern `{pattern}`: {error}")))
}

fn is_match(pattern: &Regex, text: &str) -> Score {
    match pattern.is_match(text) {
        Ok(found) => Score::Value(f64::from(u8::from(found))),
        Err(error) => Score::Failed(format!("the pattern gave up: {error}")),
    }
}
