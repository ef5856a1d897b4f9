//! Reinforcement learning with verifiable rewards: group relative policy optimization (GRPO, arXiv 2402.03300) and its variants.
//!
//! A [`Trainer`] draws several completions of each prompt of a [`Task`](crate::task::Task), has them
//! [rewarded](crate::reward::Rewards), and makes those likelier that did better than the others of their prompt. [`run`] drives one to
//! the end in an output folder, with metrics, measurements, completions to read, saved states and exact resume.
//!
//! The variants that the field has names for are options of [`GrpoConfig`]:
//!
//! | variant | options |
//! |---|---|
//! | GRPO | `loss_type: Grpo`, `scale_rewards: Group` |
//! | Dr. GRPO (arXiv 2503.20783) | `loss_type: DrGrpo`, `scale_rewards: None` |
//! | DAPO (arXiv 2503.14476) | `loss_type: Dapo`, `epsilon_high: Some(0.28)`, `mask_truncated_completions`, a length penalty among the rewards |
//! | BNPO | `loss_type: Bnpo` |
//!
//! The base model that a divergence is measured from costs nothing: it is the model with its adapters off.

mod advantages;
mod config;
mod log_probs;
mod micro_batches;
mod objective;
mod policy;
mod rollout;
mod rows;
mod run;
#[cfg(test)]
mod tests;
mod trainer;

pub use crate::activation_memory::ActivationMemory;
pub use advantages::{ScaleRewards, advantages};
pub use config::{GrpoConfig, RolloutWeights};
pub use objective::{CompletionLoss, LossType, Normalizer, Objective, TokenProbabilities};
pub use run::{RunOptions, RunSummary, run};
pub use trainer::Trainer;
