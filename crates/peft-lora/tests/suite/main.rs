//! The tests of peft-lora, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod config;
mod init;
mod layer;
mod weighted;
