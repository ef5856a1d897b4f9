//! Tests of VeRA against PEFT's files, PyTorch's generator and finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adapters;
mod config;
mod dropout;
mod init;
mod laws;
mod loading;
mod support;
