//! The tests of peft-train, in one binary.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../peft-models/tests/suite/allocations.rs"]
mod allocations;
mod chat;
mod data;
mod dataset;
mod eval;
mod fixtures;
mod generation;
mod head;
mod log_probs;
mod loss;
mod memory;
mod metrics;
mod objective;
mod optim;
mod order;
mod report;
mod resume;
mod reward_number;
mod reward_program;
mod reward_sums;
mod schedule;
mod task;
mod task_files;
mod tiny;
mod tokenizer;
mod training;
