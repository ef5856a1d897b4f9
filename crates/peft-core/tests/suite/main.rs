//! The tests of peft-core, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
mod counts;
mod damaged;
mod default_targets;
mod detached;
mod dropout;
mod embedding_base;
mod files;
mod iteration;
mod laws;
mod lifecycle;
mod linalg;
mod merging;
mod methods;
mod params;
mod registry;
mod support;
mod swapping;
mod targets;
mod tied;
mod torch_rng;
mod whole_modules;
