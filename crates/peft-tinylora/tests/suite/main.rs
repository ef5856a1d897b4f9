//! Tests of TinyLoRA against PEFT's files, PyTorch's generator and finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod config;
mod dropout;
mod factors;
mod gradients;
mod laws;
mod layer;
mod loading;
mod peft;
mod projection;
mod support;
mod tying;
