//! The tests of peft-ia3, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod config;
mod init;
mod laws;
mod layer;
mod targets;
