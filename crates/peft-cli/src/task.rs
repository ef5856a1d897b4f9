//! Tasks as a base model reads them.

use crate::args::TaskArgs;
use crate::base::Base;
use crate::data::dated;
use anyhow::{Context, Result};
use candle_peft::train::chat::ChatTemplate;
use candle_peft::train::data::Encoder;
use candle_peft::train::reward::{LengthPenalty, Program, Rewards};
use candle_peft::train::task::{Task, TaskFiles};
use candle_peft::train::tokenizer::Tokenizer;
use std::time::Duration;

impl TaskArgs {
    /// The task, with training problems in the order of the seed.
    pub(crate) fn open(&self, seed: u64) -> Result<Task> {
        let files = TaskFiles { train: self.task_train.as_deref(), eval: self.task_eval.as_deref() };
        Ok(Task::by_name_or_path(&self.task, files)?.with_seed(seed))
    }

    /// The rewards, if they are not just those of the task.
    pub(crate) fn rewards(&self, task: &Task, max_tokens: usize) -> Result<Option<Rewards>> {
        let mut rewards = match &self.reward_program {
            Some(command) => {
                let timeout = Duration::from_secs_f64(self.reward_timeout);
                Rewards::new().with(Program::shell(command).with_timeout(timeout), 1.0)
            }
            None => task.rewards(),
        };
        if let Some(margin) = self.length_penalty {
            rewards = rewards.with(LengthPenalty::new(max_tokens, margin)?, 1.0);
        }
        Ok((self.reward_program.is_some() || self.length_penalty.is_some()).then_some(rewards))
    }
}

/// Turns the prompts of a task into what a model reads.
pub(crate) struct TaskReader {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
}

impl TaskReader {
    pub(crate) fn new(base: &Base) -> Result<Self> {
        let tokenizer = base.tokenizer()?;
        let tokenizer = tokenizer
            .with_context(|| format!("{}: no tokenizer.json, so the model cannot read a task", base.dir().display()))?;
        let chat = base.chat_template(Some(&tokenizer))?.map(dated);
        Ok(Self { tokenizer, chat })
    }

    pub(crate) fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: Some(&self.tokenizer), chat: self.chat.as_ref() }
    }
}
