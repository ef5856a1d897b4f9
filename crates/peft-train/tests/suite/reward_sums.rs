//! Patterns, lengths, and weighted sums of rewards.

use peft_train::reward::{
    AnswerForm, FormatMatch, LengthPenalty, NumberMatch, RegexMatch, Reward, Rewards, Sample, Score,
};
use peft_train::task::{Problem, Prompt};
use peft_train::{Error, Result};
use std::sync::Arc;

fn problem() -> Problem {
    Problem::new(Prompt::Text("12+34=".to_owned()), "46")
}

fn score(reward: &dyn Reward, completion: &str, tokens: usize) -> Score {
    let problem = problem();
    let mut scores = reward.score(&[Sample::new(&problem, "12+34=", completion, tokens)]).unwrap();
    assert_eq!(scores.len(), 1);
    scores.remove(0)
}

#[test]
fn patterns_occur_or_match_the_whole() {
    let think = FormatMatch::new("format", "(?s)<think>.*</think>\n<answer>.*</answer>").unwrap();
    let digits = FormatMatch::new("digits", "a|[0-9]+").unwrap();
    let anywhere = RegexMatch::new("anywhere", "[0-9]+(?! eggs)").unwrap();
    for (reward, completion, expected) in [
        (&think as &dyn Reward, "<think>\n1\n</think>\n<answer>2</answer>", 1.0),
        (&think, "<think>1</think>\n<answer>2</answer> and more", 0.0),
        (&think, "So <think>1</think>\n<answer>2</answer>", 0.0),
        (&digits, "46", 1.0),
        (&digits, "a", 1.0),
        (&digits, "46\n", 0.0),
        (&digits, "a46", 0.0),
        (&digits, "46a", 0.0),
        (&digits, "", 0.0),
        (&anywhere, "it is 5.", 1.0),
        (&anywhere, "it is 5 eggs", 0.0),
    ] {
        assert_eq!(score(reward, completion, 1), Score::Value(expected), "{} on {completion:?}", reward.name());
    }
}

#[test]
fn bad_patterns_are_named() {
    for pattern in ["(", "a)(b", "[", "\\"] {
        for error in [
            FormatMatch::new("shape", pattern).unwrap_err().to_string(),
            RegexMatch::new("shape", pattern).unwrap_err().to_string(),
        ] {
            assert!(error.contains("reward `shape`") && error.contains(pattern), "{error}");
        }
    }
}

/// A pattern that goes back over its steps exponentially often has no score; it does not hang.
#[test]
fn a_pattern_that_takes_too_long_has_no_score() {
    let slow = RegexMatch::new("slow", r"(a|a)*\1b$").unwrap();
    let Score::Failed(reason) = score(&slow, &"a".repeat(64), 1) else { panic!("it has a score") };
    assert!(reason.contains("gave up"), "{reason}");
}

/// The values of the paper's piecewise formula, worked out by hand for 20 tokens with a margin of 8.
#[test]
fn long_completions_are_punished_softly() {
    let penalty = LengthPenalty::new(20, 8).unwrap();
    for (tokens, expected) in
        [(0, 0.0), (12, 0.0), (13, -0.125), (16, -0.5), (19, -0.875), (20, -1.0), (21, -1.0), (1000, -1.0)]
    {
        assert_eq!(score(&penalty, "", tokens), Score::Value(expected), "{tokens}");
    }
    for (most, margin) in [(20, 0), (20, 21)] {
        let error = LengthPenalty::new(most, margin).unwrap_err().to_string();
        assert!(error.contains("margin") && error.contains("20"), "{error}");
    }
    assert_eq!(score(&LengthPenalty::new(4, 4).unwrap(), "", 1), Score::Value(-0.25));
}

/// Gives what it was made with, whatever the sample.
#[derive(Debug)]
struct Fixed(&'static str, Vec<Score>, f64);

impl Reward for Fixed {
    fn name(&self) -> &str {
        self.0
    }

    fn score(&self, _samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        Ok(self.1.clone())
    }

    fn on_failure(&self) -> f64 {
        self.2
    }
}

#[test]
fn totals_are_weighted_and_failures_counted_and_named() {
    let lost = || Score::Failed("lost".to_owned());
    let rewards = Rewards::new()
        .with(NumberMatch::strict(AnswerForm::Bare), 2.0)
        .with(Arc::new(Fixed("fixed", vec![Score::Value(0.5), lost(), Score::Value(f64::NAN)], -3.0)), 0.5);
    assert_eq!(rewards.names().collect::<Vec<_>>(), ["number", "fixed"]);
    let problem = problem();
    let samples = ["46", "46", "47"].map(|completion| Sample::new(&problem, "12+34=", completion, 2));
    let scored = rewards.score(&samples).unwrap();
    let totals: Vec<f64> = scored.iter().map(|sample| sample.total).collect();
    assert_eq!(totals, [2.25, 0.5, -1.5]);
    assert_eq!(scored[1].parts, [1.0, -3.0]);
    assert_eq!(scored[0].failures, []);
    assert_eq!(scored[1].failures, [(1, "lost".to_owned())]);
    assert_eq!(scored[2].failures, [(1, "the reward is NaN".to_owned())]);
}

#[test]
fn sums_that_make_no_sense_are_refused() {
    let one = || Fixed("one", vec![Score::Value(1.0)], 0.0);
    let problem = problem();
    let samples = [Sample::new(&problem, "", "", 0); 2];
    for (rewards, says) in [
        (Rewards::new(), "there are none"),
        (Rewards::new().with(one(), 1.0).with(one(), 2.0), "two of them are named `one`"),
        (Rewards::new().with(one(), f64::INFINITY), "the weight of `one` is inf"),
        (Rewards::new().with(Fixed("one", vec![], f64::NAN), 1.0), "counts for NaN"),
        (Rewards::new().with(one(), 1.0), "it gave 1 scores for 2 samples"),
    ] {
        let error = rewards.score(&samples).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(matches!(error, Error::InvalidOption { .. } | Error::Reward { .. }));
    }
}
