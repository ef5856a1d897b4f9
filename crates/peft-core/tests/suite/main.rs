//! The tests of peft-core, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod linalg;
mod torch_rng;
