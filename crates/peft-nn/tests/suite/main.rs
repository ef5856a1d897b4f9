//! The tests of peft-nn, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod activations;
mod attention;
mod attention_memory;
mod checkpoint;
mod combination;
mod cross_entropy;
mod embedding;
mod linear;
mod linear_cross_entropy;
mod multi_head_attention;
mod normalisation;
mod rope;
mod softmax;
mod support;
mod threads;
mod torch;
