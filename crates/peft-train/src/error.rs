//! The error type of training, evaluation and generation.

use std::path::{Path, PathBuf};

/// A `Result` whose error is [`enum@Error`] unless stated otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a data file and a trained adapter.
///
/// Messages are lower case, name the file, line, option or parameter at fault, and list the valid choices.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A line of a data file that is not a usable row.
    #[error("{}, line {line}: {message}", .path.display())]
    Row {
        /// The data file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A row that the model cannot attend to as a whole, when no `max_length` allows cutting it.
    #[error("{}, line {line}: {length} tokens, but the model takes {limit}; set max_length to cut long rows", .path.display())]
    SequenceTooLong {
        /// The data file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Tokens in the row.
        length: usize,
        /// The longest sequence of the model (`max_position_embeddings`).
        limit: usize,
    },
    /// A token id that has no row in the model's embedding.
    #[error("{}, line {line}: token id {id} is out of range, the model's vocabulary has {vocab_size} entries", .path.display())]
    TokenOutOfRange {
        /// The data file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The id.
        id: u32,
        /// The rows of the model's embedding.
        vocab_size: usize,
    },
    /// A data file without a single row to learn from.
    #[error("{}: no usable rows", .0.display())]
    EmptyDataset(PathBuf),
    /// A tokenizer file that is missing or broken, or text that it cannot encode.
    #[error("{}: {message}", .path.display())]
    Tokenizer {
        /// The tokenizer's file or folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A chat template that is missing, does not parse or refuses the messages.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The loss became NaN or infinite; the step was not taken.
    #[error("the loss at step {step} is {value}; {}", last_good_state(.last_good.as_deref()))]
    NonFiniteLoss {
        /// The step, counted from 1.
        step: u64,
        /// The loss.
        value: f64,
        /// Where the last state with a finite loss was saved, if it was.
        last_good: Option<PathBuf>,
    },
    /// A gradient holds NaN or infinity; the step was not taken.
    #[error("the gradient of `{0}` is not finite")]
    NonFiniteGradient(String),
    /// A parameter that an optimizer cannot train, or gradients that are not those of its parameters.
    #[error("optimizer: {0}")]
    Optimizer(String),
    /// A saved state that does not continue the run that was asked for.
    #[error("cannot resume: {0}")]
    Resume(String),
    /// A reward that cannot score at all, such as a pattern that does not parse or a program that cannot be started.
    #[error("reward `{name}`: {message}")]
    Reward {
        /// The reward's name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// An option that is out of range or contradicts another.
    #[error("invalid {option}: {message}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong with its value.
        message: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} {}: {error}", .path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        error: std::io::Error,
    },
    /// An adapter or a model failed.
    #[error(transparent)]
    Core(#[from] peft_core::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A row error from its place and message.
    pub fn row(path: impl AsRef<Path>, line: usize, message: impl Into<String>) -> Self {
        Self::Row { path: path.as_ref().to_owned(), line, message: message.into() }
    }

    /// A tokenizer error from its file and message.
    pub fn tokenizer(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Self::Tokenizer { path: path.as_ref().to_owned(), message: message.to_string() }
    }

    /// An option error from its name and message.
    pub fn option(option: &'static str, message: impl Into<String>) -> Self {
        Self::InvalidOption { option, message: message.into() }
    }

    /// A reward's error from its name and message.
    pub fn reward(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Reward { name: name.into(), message: message.into() }
    }

    /// An I/O error with what was attempted and where.
    pub fn io(action: &'static str, path: impl AsRef<Path>, error: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), error }
    }
}

/// Lets `?` cross into candle-typed code such as training loops.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}

fn last_good_state(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("the last good state is in {}", path.display()),
        None => "no earlier state was saved".to_owned(),
    }
}
