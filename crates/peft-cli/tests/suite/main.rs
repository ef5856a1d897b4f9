//! The tests of peft-cli, in one binary.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_data;
mod bad_files;
mod bad_fit;
mod bad_output;
mod combine;
mod commands;
mod compact;
mod conversion;
mod exports;
mod hub;
mod interruption;
mod old_files;
mod report;
mod support;
mod usage;
