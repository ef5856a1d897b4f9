//! Tasks: problems whose answers can be checked.
//!
//! A [`Task`] is an endless sequence of training problems, a list of problems held out from it, and a way to read the answer from
//! a completion. [`Task::sums`] and [`Task::arithmetic`] make theirs up, the others read files.

mod arithmetic;
mod file;
mod gsm8k;
mod named;
mod problem;
mod rows;
mod sums;

pub use arithmetic::{ArithmeticConfig, ArithmeticStyle, Operation};
pub use gsm8k::Gsm8kPrompt;
pub use named::TaskFiles;
pub use problem::{Problem, Prompt, Reading};
pub use sums::Sum;

use crate::error::Result;
use crate::fingerprint::Digest;
use crate::reward::{AnswerForm, NumberMatch, Rewards};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rows::{Demonstrated, Rows};
use std::borrow::Cow;
use std::path::Path;

/// Problems to train on, problems to measure with, and how their answers are read.
///
/// ```
/// use peft_train::task::Task;
///
/// let task = Task::sums();
/// let problem = task.problem(0);
/// let right = task.demonstration(&problem).unwrap_or_default();
/// assert!(task.read(&problem, &right).strict);
/// ```
#[derive(Debug, Clone)]
pub struct Task {
    name: String,
    seed: u64,
    source: Source,
    eval: Vec<Problem>,
    form: AnswerForm,
    stop_strings: Vec<String>,
    max_new_tokens: usize,
    /// Stands for everything but the seed.
    digest: u64,
}

/// Where the training problems come from.
#[derive(Debug, Clone)]
enum Source {
    Sums,
    Arithmetic(ArithmeticConfig),
    Rows(Rows),
}

impl Task {
    /// What the embedded model was trained on: sums of numbers below 50, written `12+34=`.
    ///
    /// A tenth of all sums is held out; they are the problems to measure with, and neither the embedded model nor
    /// [`problem`](Self::problem) has seen them. See [`Sum`].
    pub fn sums() -> Self {
        Self {
            name: "sums".to_owned(),
            seed: 0,
            source: Source::Sums,
            eval: sums::held_out().into_iter().map(Sum::problem).collect(),
            form: AnswerForm::Bare,
            stop_strings: vec!["\n".to_owned()],
            max_new_tokens: 4,
            digest: digest_of("sums", []),
        }
    }

    /// Arithmetic with two numbers such as `37 + 45`, after a few examples; as lines of text, or for models that chat.
    ///
    /// A tenth of all pairs of operands is held out, whatever their order and the operation.
    ///
    /// # Errors
    /// Names the option that is out of range.
    pub fn arithmetic(config: ArithmeticConfig) -> Result<Self> {
        Ok(Self {
            name: "arithmetic".to_owned(),
            seed: config.seed,
            eval: config.held_out()?,
            form: AnswerForm::Bare,
            stop_strings: config.stop_strings(),
            max_new_tokens: 8,
            digest: digest_of("arithmetic", [config.description().as_str()]),
            source: Source::Arithmetic(config),
        })
    }

    /// Word problems in the format of [GSM8K](https://arxiv.org/abs/2110.14168): JSONL rows of `question` and `answer`, where the
    /// answer ends with `#### ` and a number.
    ///
    /// Without a file of test rows every tenth row of the training file is held out. The whole row but its answer is in
    /// [`Problem::fields`]; the worked answer is there as `solution`.
    ///
    /// # Errors
    /// Names the line that is no such row. Fails when a file has no rows, or the training file has less than ten and no test file
    /// is given.
    pub fn gsm8k(train: &Path, test: Option<&Path>, prompt: Gsm8kPrompt) -> Result<Self> {
        let (rows, eval, digest) = rows::read(train, test, &|row| gsm8k::problem(row, prompt))?;
        let demonstrated = match prompt {
            Gsm8kPrompt::Text => Demonstrated::AfterSpace(gsm8k::SOLUTION),
            Gsm8kPrompt::Chat => Demonstrated::Field(gsm8k::SOLUTION),
        };
        Ok(Self {
            name: "gsm8k".to_owned(),
            seed: 0,
            source: Source::Rows(Rows::new(rows, demonstrated)?),
            eval,
            form: AnswerForm::Marked,
            stop_strings: match prompt {
                // A base model goes on with the next problem otherwise, and that one's answer would be read.
                Gsm8kPrompt::Text => vec!["\nQuestion:".to_owned()],
                Gsm8kPrompt::Chat => vec![],
            },
            max_new_tokens: 300,
            digest: digest_of("gsm8k", [prompt.name(), &format!("{digest:016x}")]),
        })
    }

    /// Problems of a JSONL file: rows of `prompt` (a text or a list of chat messages), `answer` (a text or a number), and anything
    /// else, which a [`Program`](crate::reward::Program) is given.
    ///
    /// Without a file of problems to measure with every tenth row is held out. A field `completion` is the right completion for
    /// [`demonstration`](Self::demonstration); without it the answer is.
    ///
    /// # Errors
    /// Names the line that is no such row. Fails when a file has no rows, or `train` has less than ten and no other is given.
    pub fn from_jsonl(train: &Path, eval: Option<&Path>) -> Result<Self> {
        let (rows, eval, digest) = rows::read(train, eval, &file::problem)?;
        Ok(Self {
            name: train.display().to_string(),
            seed: 0,
            source: Source::Rows(Rows::new(rows, Demonstrated::FieldOrAnswer("completion"))?),
            eval,
            form: AnswerForm::MarkedOrBare,
            stop_strings: vec![],
            max_new_tokens: 256,
            digest: digest_of("jsonl", [format!("{digest:016x}").as_str()]),
        })
    }

    /// The same task with other training problems, or another order of them. What is held out stays held out.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What it is called: `sums`, `arithmetic`, `gsm8k`, or the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The training problem of this number, counted from 0, without end. It depends on the task, the seed and the number alone.
    ///
    /// Problems of a file come in shuffled epochs.
    pub fn problem(&self, index: u64) -> Cow<'_, Problem> {
        match &self.source {
            Source::Sums => Cow::Owned(Sum::draw(&mut numbers(self.seed, index), false).problem()),
            Source::Arithmetic(config) => Cow::Owned(config.draw(&mut numbers(self.seed, index), false)),
            Source::Rows(rows) => Cow::Borrowed(rows.at(self.seed, index)),
        }
    }

    /// The problems that are held out from training, in an order of which any beginning is a fair sample.
    ///
    /// Those of a file come in its order.
    pub fn eval_problems(&self) -> &[Problem] {
        &self.eval
    }

    /// What ends a completion where it occurs, besides the model's end token.
    pub fn stop_strings(&self) -> &[String] {
        &self.stop_strings
    }

    /// How many tokens a completion may well take.
    pub fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    /// What to reward: a right answer in the form that was asked for.
    pub fn rewards(&self) -> Rewards {
        Rewards::new().with(NumberMatch::strict(self.form), 1.0)
    }

    /// A number that stands for the task and all of its problems, the same on every machine.
    ///
    /// A resumed run compares it to tell whether its problems have changed.
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Digest::default();
        digest.word(self.digest);
        digest.word(self.seed);
        digest.finish()
    }

    /// The right completion, for supervised training on the same problems: as a row of
    /// [`data`](crate::data), the prompt and this are `prompt` and `completion`.
    ///
    /// `None` where a problem of a file has neither a completion nor an answer.
    pub fn demonstration(&self, problem: &Problem) -> Option<String> {
        match &self.source {
            Source::Sums => Some(problem.answer.clone()),
            Source::Arithmetic(config) => Some(config.demonstration(problem)),
            Source::Rows(rows) => rows.demonstration(problem),
        }
    }

    /// Whether a completion gives the right answer, in both readings; see [`NumberMatch`].
    pub fn read(&self, problem: &Problem, completion: &str) -> Reading {
        Reading {
            strict: NumberMatch::strict(self.form).matches(&problem.answer, completion),
            flexible: NumberMatch::flexible().matches(&problem.answer, completion),
        }
    }
}

/// The random numbers of one problem.
fn numbers(seed: u64, index: u64) -> impl FnMut() -> u32 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    move || rng.next_u32()
}

fn digest_of<'a>(kind: &str, facts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut digest = Digest::default();
    digest.text(kind);
    facts.into_iter().for_each(|fact| digest.text(fact));
    digest.finish()
}
