//! Tasks as a base model reads them.

use crate::args::{AnswerArgs, RewardArgs, TaskArgs};
use crate::base::Base;
use crate::data::dated;
use anyhow::{Context, Result};
use candle_peft::train::accuracy::AccuracyOptions;
use candle_peft::train::chat::ChatTemplate;
use candle_peft::train::data::Encoder;
use candle_peft::train::metrics::AccuracyMetrics;
use candle_peft::train::reward::{LengthPenalty, Program, Rewards};
use candle_peft::train::task::{Task, TaskFiles};
use candle_peft::train::tokenizer::Tokenizer;
use std::time::Duration;

impl TaskArgs {
    /// The task that was named, if one was, with training problems in the order of the seed.
    pub(crate) fn open(&self, seed: u64) -> Result<Option<Task>> {
        let Some(name) = &self.task else { return Ok(None) };
        let files = TaskFiles { train: self.task_train.as_deref(), eval: self.task_eval.as_deref() };
        Ok(Some(Task::by_name_or_path(name, files)?.with_seed(seed)))
    }
}

impl RewardArgs {
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

impl AnswerArgs {
    /// What is to be measured, if anything.
    pub(crate) fn options(&self, seed: u64) -> Option<AccuracyOptions> {
        (self.eval_problems > 0).then(|| AccuracyOptions {
            problems: Some(self.eval_problems),
            samples: self.eval_samples.get(),
            temperature: self.eval_temperature,
            max_new_tokens: self.max_new_tokens.map(|tokens| tokens.get()),
            rows: self.rollout_rows.get(),
            seed,
        })
    }
}

/// Both readings with their intervals, in percent.
pub(crate) fn shares(measured: &AccuracyMetrics) -> String {
    let share = |share: f64, [low, high]: [f64; 2]| {
        format!("{:.1} % ({:.1} to {:.1})", 100.0 * share, 100.0 * low, 100.0 * high)
    };
    let strict = share(measured.strict, measured.strict_interval);
    let flexible = share(measured.flexible, measured.flexible_interval);
    format!("right: {strict} strictly, {flexible} flexibly read, of {} problems", measured.problems)
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
