//! Whether a completion gives the right answer.

mod marked;
mod scan;
mod value;

use super::{Reward, Sample, Score};
use crate::error::Result;
use marked::{after_marker, trimmed};
use scan::last_number;
use value::Number;

/// Where the answer stands in a completion that keeps to what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerForm {
    /// The completion is the answer and nothing else.
    Bare,
    /// After the last of `The answer is: `, `The answer is `, `The final answer is: `, `The final answer is ` and `#### `, to the
    /// end of that line.
    Marked,
    /// After the marker if there is one; else the completion is the answer and nothing else.
    MarkedOrBare,
}

impl AnswerForm {
    /// The answer of a completion of this form, without space, `.`, `!`, `?`, `$` and `%` around it.
    fn answer(self, completion: &str) -> Option<&str> {
        let bare = || trimmed(completion.trim());
        match self {
            Self::Bare => Some(bare()),
            Self::Marked => after_marker(completion),
            Self::MarkedOrBare => Some(after_marker(completion).unwrap_or_else(bare)),
        }
    }
}

/// 1 where the answer is right, else 0.
///
/// There are two readings, and a model can gain much in one without gaining anything in the other: the *strict* one wants the
/// answer in the form that was asked for, the *flexible* one takes the last number of the completion wherever it stands.
///
/// Numbers are compared as numbers, exactly: `1,000`, `$1000.00` and `2000/2` are the same. They may have a minus (also `−` and
/// `–`), a dollar, pound or euro sign, thousands separators (commas or fixed spaces), decimals, one fraction bar, and a per cent
/// sign, which is dropped. Where the right answer is not a number, the strict reading compares texts, and the flexible one looks
/// for it anywhere in the completion as whole words, in capitals or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberMatch {
    reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Strict(AnswerForm),
    Flexible,
}

impl NumberMatch {
    /// The strict reading, named `number`.
    pub fn strict(form: AnswerForm) -> Self {
        Self { reading: Reading::Strict(form) }
    }

    /// The flexible reading, named `number_flexible`.
    pub fn flexible() -> Self {
        Self { reading: Reading::Flexible }
    }

    /// Whether `completion` gives the answer `right`.
    pub fn matches(&self, right: &str, completion: &str) -> bool {
        let right = trimmed(right.trim());
        if right.is_empty() {
            return false;
        }
        match (self.reading, Number::parse(right)) {
            (Reading::Strict(form), Some(right)) => form.answer(completion).and_then(Number::parse) == Some(right),
            (Reading::Strict(form), None) => form.answer(completion) == Some(right),
            (Reading::Flexible, Some(right)) => last_number(completion) == Some(right),
            (Reading::Flexible, None) => has_words(&completion.to_lowercase(), &right.to_lowercase()),
        }
    }
}

impl Reward for NumberMatch {
    fn name(&self) -> &str {
        match self.reading {
            Reading::Strict(_) => "number",
            Reading::Flexible => "number_flexible",
        }
    }

    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        let right = |sample: &Sample<'_>| self.matches(&sample.problem.answer, sample.completion);
        Ok(samples.iter().map(|sample| Score::Value(f64::from(u8::from(right(sample))))).collect())
    }
}

/// The number behind the last marker of a text, as it is written there.
pub(crate) fn marked_number(text: &str) -> Option<&str> {
    after_marker(text).filter(|answer| Number::parse(answer).is_some())
}

/// Whether the words occur in the text with neither letter nor digit on either side.
fn has_words(text: &str, words: &str) -> bool {
    let inside = |neighbour: Option<char>| neighbour.is_some_and(char::is_alphanumeric);
    text.match_indices(words)
        .any(|(at, _)| !inside(text[..at].chars().next_back()) && !inside(text[at + words.len()..].chars().next()))
}
