//! Tasks by what the command line calls them.

use super::{ArithmeticConfig, Gsm8kPrompt, Task};
use crate::error::{Error, Result};
use std::path::Path;

const NAMES: &str = "sums, arithmetic, gsm8k (with a file of training rows), or a JSONL file of problems";

/// The files that go with a task's name.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaskFiles<'a> {
    /// The rows to train on, of `gsm8k`.
    pub train: Option<&'a Path>,
    /// The rows to measure with, of `gsm8k` and of a file of problems. Without it every tenth row of the others is held out.
    pub eval: Option<&'a Path>,
}

impl Task {
    /// The task that the command line calls so: `sums`, `arithmetic`, `gsm8k`, or a JSONL file for
    /// [`from_jsonl`](Self::from_jsonl), each with its defaults.
    ///
    /// # Errors
    /// When there is no such task or file, `gsm8k` comes without a file, or the others with one that they do not read.
    pub fn by_name_or_path(name: &str, files: TaskFiles<'_>) -> Result<Self> {
        let refuse = |message: &str| Err(Error::option("task", format!("{name} {message}")));
        match (name, files) {
            ("sums", TaskFiles { train: None, eval: None }) => Ok(Self::sums()),
            ("arithmetic", TaskFiles { train: None, eval: None }) => Self::arithmetic(ArithmeticConfig::default()),
            ("sums" | "arithmetic", _) => refuse("makes its problems up; it reads no files"),
            ("gsm8k", TaskFiles { train: Some(train), eval }) => Self::gsm8k(train, eval, Gsm8kPrompt::default()),
            ("gsm8k", TaskFiles { train: None, .. }) => {
                refuse("reads its problems from a file; name that of the training rows")
            }
            (path, _) if !Path::new(path).is_file() => {
                Err(Error::option("task", format!("`{path}` is neither a task nor a file; the choices are {NAMES}")))
            }
            (_, TaskFiles { train: Some(_), .. }) => {
                refuse("is itself the file of training problems; no other is read")
            }
            (path, TaskFiles { eval, .. }) => Self::from_jsonl(Path::new(path), eval),
        }
    }
}
