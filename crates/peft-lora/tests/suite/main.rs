//! The tests of peft-lora, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod config;
mod conversion;
mod dora;
mod init;
mod laws;
mod layer;
mod weighted;
