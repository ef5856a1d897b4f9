//! Tests of LoRA-XS against an independent decomposition, PyTorch's generator and finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod config;
mod exact;
mod files;
mod laws;
mod start;
mod support;
