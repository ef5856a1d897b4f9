//! What `grpo` accepts.

use super::values::{
    LossTypeArg, RolloutArg, ScaleRewardsArg, ScheduleArg, non_negative, positive, probability, share,
};
use super::{AnswerArgs, RewardArgs, TaskArgs, TrainingArgs};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::num::NonZeroUsize;

#[derive(Debug, Args)]
pub(crate) struct GrpoArgs {
    #[command(flatten)]
    pub(crate) training: TrainingArgs,

    #[command(flatten)]
    pub(crate) task: TaskArgs,

    #[command(flatten)]
    pub(crate) rollouts: RolloutArgs,

    #[command(flatten)]
    pub(crate) objective: ObjectiveArgs,

    #[command(flatten)]
    pub(crate) reward: RewardArgs,

    #[command(flatten)]
    pub(crate) answers: AnswerArgs,

    /// Answer held-out problems after every N steps too
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) eval_every: Option<u64>,

    /// The course of the learning rate after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleArg::Constant)]
    pub(crate) schedule: ScheduleArg,

    /// Scale the gradients of an update down to this norm
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub(crate) grad_clip: f64,

    /// The most tokens, padding included, that go through the model at a time in training
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) micro_batch_tokens: NonZeroUsize,

    /// Save adapter and state after every N steps
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) save_every: u64,

    /// Prompts of each step whose completions are kept in completions.jsonl
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) log_prompts: usize,
}

/// How completions are drawn.
#[derive(Debug, Args)]
pub(crate) struct RolloutArgs {
    /// Prompts of a step
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) prompts_per_step: NonZeroUsize,

    /// Completions of each prompt
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    pub(crate) group_size: usize,

    /// The temperature of the completions
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = positive)]
    pub(crate) temperature: f64,

    /// Draw from so many likeliest tokens only
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<NonZeroUsize>,

    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    pub(crate) top_p: f64,

    /// Draw from tokens with at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    pub(crate) min_p: f64,

    /// Run the adapter beside the base weights when completions are drawn, or merge it into them and take it out again
    #[arg(long, value_enum, default_value_t = RolloutArg::Live)]
    pub(crate) rollouts: RolloutArg,
}

/// The loss and its updates; defaults are those of TRL.
#[derive(Debug, Args)]
pub(crate) struct ObjectiveArgs {
    /// How the losses of tokens are put together
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = LossTypeArg::Dapo)]
    pub(crate) loss_type: LossTypeArg,

    /// What the distance of a reward from its group's mean is divided by
    #[arg(long, value_enum, value_name = "SCALE", default_value_t = ScaleRewardsArg::Group)]
    pub(crate) scale_rewards: ScaleRewardsArg,

    /// How far below 1 the ratio of new to old probabilities may fall
    #[arg(long, value_name = "X", default_value_t = 0.2, value_parser = share)]
    pub(crate) epsilon: f64,

    /// How far above 1 it may rise; DAPO has 0.28 [default: as --epsilon]
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub(crate) epsilon_high: Option<f64>,

    /// The weight of the divergence from the base model
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) beta: f64,

    /// How often the completions of a step are gone through
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) num_iterations: NonZeroUsize,

    /// Updates in which they are gone through once
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) mini_batches: NonZeroUsize,

    /// Leave completions that were cut off out of the loss
    #[arg(long)]
    pub(crate) mask_truncated_completions: bool,

    /// Truncated importance sampling: correct for generation that is less exact than training, by at most this factor a token
    /// [default: no correction]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) importance_cap: Option<f64>,
}
