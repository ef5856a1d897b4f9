//! Supervised fine-tuning, evaluation and generation with adapters.
//!
//! The parts that do not depend on a model: [`data`] turns JSONL rows into batches, through a [`tokenizer`] and a
//! [`chat`] template; [`optim`] updates variables with PyTorch's arithmetic at the rate of a [`schedule`]; [`progress`]
//! and [`metrics`] tell how it goes. Everything is a function of the step, so a run can be resumed exactly.
//!
//! [`task`] holds problems whose answers can be checked, and [`reward`] says what an answer is worth. [`report`] shows a run as
//! a page.
//!
//! The parts that run one: [`loss`] of a batch, [`sft`] to train an adapter, [`eval`] to measure it, [`generate`] to read
//! what it writes.

#![forbid(unsafe_code)]

pub mod accuracy;
mod activation_memory;
pub mod chat;
pub mod data;
mod error;
pub mod eval;
mod fingerprint;
pub mod generate;
pub mod grpo;
mod json_lines;
pub mod loss;
pub mod metrics;
pub mod optim;
pub mod progress;
pub mod report;
pub mod reward;
pub mod run;
pub mod schedule;
pub mod sft;
mod state;
pub mod task;
pub mod tokenizer;
mod updates;

pub use error::{Error, Result};
