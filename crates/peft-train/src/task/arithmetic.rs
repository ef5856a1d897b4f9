//! Arithmetic with two operands.

use super::numbers;
use super::problem::{Problem, Prompt};
use crate::chat::Message;
use crate::error::{Error, Result};
use crate::fingerprint::derived_seed;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

/// What is done with two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// `+`
    Add,
    /// `-`, the smaller operand from the larger one
    Subtract,
    /// `*`
    Multiply,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
        })
    }
}

/// How exercises are put to a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArithmeticStyle {
    /// As text that goes on: lines such as `37 + 45 = 82`, and one that ends with `=`. The answer ends with the line.
    Lines,
    /// As a chat. What the user says; `{}` stands for `37 + 45`.
    Chat(String),
}

/// What [`Task::arithmetic`](super::Task::arithmetic) asks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArithmeticConfig {
    /// The operations, each as likely as any other.
    pub operations: Vec<Operation>,
    /// What both operands are drawn from; at most a million.
    pub operands: RangeInclusive<u32>,
    /// How it is asked.
    pub style: ArithmeticStyle,
    /// How many right answers to other exercises come before the one in question, as lines or as earlier turns of a chat. They show a
    /// small model what an answer looks like.
    pub examples: usize,
    /// How many held-out problems to measure with. There are fewer where the operands do not give as many.
    pub eval_problems: usize,
    /// The seed of the training problems.
    pub seed: u64,
}

impl Default for ArithmeticConfig {
    fn default() -> Self {
        Self {
            operations: vec![Operation::Add],
            operands: 1..=50,
            style: ArithmeticStyle::Lines,
            examples: 4,
            eval_problems: 200,
            seed: 0,
        }
    }
}

const LARGEST: u32 = 1_000_000;

/// Draws in a row without a new problem after which there is none to be expected.
const PATIENCE: usize = 10_000;

impl ArithmeticConfig {
    /// The problems to measure with. They do not depend on the seed.
    pub(super) fn held_out(&self) -> Result<Vec<Problem>> {
        self.check()?;
        let mut bits = numbers(0, u64::MAX);
        let (mut seen, mut problems, mut idle) = (BTreeSet::new(), Vec::new(), 0);
        while problems.len() < self.eval_problems && idle < PATIENCE {
            let exercise = self.exercise(&mut bits, true);
            idle += 1;
            if seen.insert(exercise) {
                problems.push(self.problem(exercise));
                idle = 0;
            }
        }
        Ok(problems)
    }

    /// A problem, held out or not.
    pub(super) fn draw(&self, bits: &mut impl FnMut() -> u32, held_out: bool) -> Problem {
        self.problem(self.exercise(bits, held_out))
    }

    /// Everything that problems depend on, but for the seed.
    pub(super) fn description(&self) -> String {
        let operations: String = self.operations.iter().map(Operation::to_string).collect();
        let Self { operands, examples, eval_problems, style, .. } = self;
        format!("{operations} {operands:?} {examples} {eval_problems} {style:?}")
    }

    fn check(&self) -> Result<()> {
        let (&low, &high) = (self.operands.start(), self.operands.end());
        if self.operations.is_empty() {
            return Err(Error::option("operations", "there are none; the choices are +, - and *"));
        }
        if let ArithmeticStyle::Chat(question) = &self.style
            && !question.contains("{}")
        {
            let message = format!("`{question}` has no {{}} for the exercise");
            return Err(Error::option("style", message));
        }
        if self.eval_problems == 0 {
            return Err(Error::option("eval_problems", "it must be at least 1"));
        }
        if low > high || high > LARGEST {
            let message = format!("{low}..={high} is not a range of numbers up to {LARGEST}");
            return Err(Error::option("operands", message));
        }
        // Otherwise there could be no pair to hold out, or none to train on.
        let mut pairs = (low..=high).take(100).flat_map(|a| (a..=high).take(100).map(move |b| is_held_out(a, b)));
        let first = pairs.next();
        if pairs.all(|held_out| Some(held_out) == first) {
            let message = format!("{low}..={high} gives too few pairs to hold out a tenth of them");
            return Err(Error::option("operands", message));
        }
        Ok(())
    }

    fn exercise(&self, bits: &mut impl FnMut() -> u32, held_out: bool) -> Exercise {
        let mut below = |bound: usize| bits() as usize % bound;
        let operation = self.operations[below(self.operations.len())];
        let (low, count) = (*self.operands.start(), self.operands.clone().count());
        loop {
            let (a, b) = (low + below(count) as u32, low + below(count) as u32);
            if is_held_out(a, b) == held_out {
                let swap = operation == Operation::Subtract && a < b;
                return if swap { (operation, b, a) } else { (operation, a, b) };
            }
        }
    }

    fn problem(&self, exercise: Exercise) -> Problem {
        // The same before every exercise; none of their pairs is held out.
        let mut bits = numbers(1, u64::MAX);
        let examples = (0..self.examples).map(|_| self.exercise(&mut bits, false));
        let prompt = match &self.style {
            ArithmeticStyle::Lines => {
                let lines = examples.map(|example| format!("{} = {}\n", written(example), answer(example)));
                Prompt::Text(lines.collect::<String>() + &format!("{} =", written(exercise)))
            }
            ArithmeticStyle::Chat(question) => {
                let question = |exercise| Message::new("user", &question.replace("{}", &written(exercise)));
                let turns = |example| [question(example), Message::new("assistant", &answer(example).to_string())];
                Prompt::Chat(examples.flat_map(turns).chain([question(exercise)]).collect())
            }
        };
        Problem::new(prompt, answer(exercise).to_string())
    }

    /// What ends an answer.
    pub(super) fn stop_strings(&self) -> Vec<String> {
        match self.style {
            ArithmeticStyle::Lines => vec!["\n".to_owned()],
            ArithmeticStyle::Chat(_) => vec![],
        }
    }

    /// The right completion of a problem.
    pub(super) fn demonstration(&self, problem: &Problem) -> String {
        match self.style {
            ArithmeticStyle::Lines => format!(" {}", problem.answer),
            ArithmeticStyle::Chat(_) => problem.answer.clone(),
        }
    }
}

type Exercise = (Operation, u32, u32);

fn written((operation, a, b): Exercise) -> String {
    format!("{a} {operation} {b}")
}

fn answer((operation, a, b): Exercise) -> u64 {
    let (a, b) = (u64::from(a), u64::from(b));
    match operation {
        Operation::Add => a + b,
        Operation::Subtract => a - b,
        Operation::Multiply => a * b,
    }
}

/// A tenth of all pairs is held out, in whatever order.
fn is_held_out(a: u32, b: u32) -> bool {
    derived_seed([u64::from(a.min(b)), u64::from(a.max(b)), 0]).is_multiple_of(10)
}
