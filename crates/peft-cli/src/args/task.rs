//! A task with verifiable rewards.

use super::values::positive;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    /// What to solve: sums (for the embedded model), arithmetic (for instruct models), gsm8k (with --task-train), or a JSONL file of
    /// {"prompt", "answer"}
    #[arg(long, value_name = "TASK")]
    pub(crate) task: String,

    /// The training rows of gsm8k, {"question", "answer"} a line
    #[arg(long, value_name = "FILE")]
    pub(crate) task_train: Option<PathBuf>,

    /// Problems to measure with, of gsm8k or a file [default: every tenth of the others, which is not trained on]
    #[arg(long, value_name = "FILE")]
    pub(crate) task_eval: Option<PathBuf>,

    /// A shell command that rewards completions in place of the task's own reward: it reads an object {"prompt", "completion", "answer",
    /// ...} a line and writes a number a line
    #[arg(long, value_name = "COMMAND")]
    pub(crate) reward_program: Option<String>,

    /// How long the program may take for a completion, in seconds
    #[arg(long, value_name = "X", default_value_t = 10.0, value_parser = positive, requires = "reward_program")]
    pub(crate) reward_timeout: f64,

    /// Take up to 1 off the reward of completions within so many tokens of the most allowed (DAPO's soft punishment)
    #[arg(long, value_name = "TOKENS")]
    pub(crate) length_penalty: Option<usize>,
}
