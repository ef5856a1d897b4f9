//! The tools that test other crates, tested.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod assert;
mod fixture;
mod gradient;
mod laws;
mod models;
mod planted;
