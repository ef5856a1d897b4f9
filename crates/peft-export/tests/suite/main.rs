//! The tests of peft-export, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod base;
mod gguf;
mod mlx;
mod names;
mod refusals;
mod rotary;
mod support;
