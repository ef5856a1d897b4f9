//! The tests of peft-models, in one binary.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod allocations;
mod broken_files;
mod candle_llama;
mod checkpointing;
mod configs;
mod generation;
mod goldens;
mod gradients;
mod module_order;
mod padding;
mod patching;
mod saving;
mod support;
