//! A task with verifiable rewards.

use super::values::{non_negative, positive};
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    /// What to solve: sums (for the embedded model), arithmetic (for instruct models), gsm8k (with --task-train), or a JSONL file of
    /// {"prompt", "answer"}
    #[arg(long, value_name = "TASK")]
    pub(crate) task: Option<String>,

    /// The training rows of gsm8k, {"question", "answer"} a line
    #[arg(long, value_name = "FILE", requires = "task")]
    pub(crate) task_train: Option<PathBuf>,

    /// Problems to measure with, of gsm8k or a file [default: every tenth of the others, which is not trained on]
    #[arg(long, value_name = "FILE", requires = "task")]
    pub(crate) task_eval: Option<PathBuf>,
}

/// What completions are worth.
#[derive(Debug, Args)]
pub(crate) struct RewardArgs {
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

/// Answers to held-out problems of a task.
#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    /// Held-out problems to answer; 0 for none
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) eval_problems: usize,

    /// Answers to each of them
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) eval_samples: NonZeroUsize,

    /// The temperature of the answers; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) eval_temperature: f64,

    /// The most tokens of an answer [default: what the task suggests]
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<NonZeroUsize>,

    /// Completions that are generated side by side; it changes speed and memory, no result
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) rollout_rows: NonZeroUsize,
}
