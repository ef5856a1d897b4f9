//! End-to-end tests: whole models with adapters that Python's PEFT wrote.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod compact;
mod conversion;
mod custom_method;
mod factor_cache;
mod fixture;
mod golden;
mod grpo;
mod hotswap;
mod old_files;
mod pretrained;
mod readme;
mod stacking;
mod starting;
mod weighted;
