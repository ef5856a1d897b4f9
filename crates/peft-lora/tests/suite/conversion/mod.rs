//! Conversion to LoRA, against decompositions of whole deltas by faer in f64.

mod dense;
mod patterns;
mod product;
mod support;
