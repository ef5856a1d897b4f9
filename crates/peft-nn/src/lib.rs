//! Differentiable operators for adapting frozen models on candle.
//!
//! Training an adapter differentiates with respect to activations almost everywhere and with respect to weights almost
//! nowhere. candle's graph does not know that: an operation with one tracked operand computes, and keeps in the
//! `GradStore`, the gradient of every operand, frozen weights, masks and rotary tables included, and the fused
//! operations of `candle_nn` (`rms_norm`, `softmax_last_dim`, `rope`) have no gradient at all and drop it silently.
//!
//! The operators here have hand-written gradients, which reach exactly those inputs that are tracked (a `Var`, or
//! computed from one). No other tensor ever gets an entry in the `GradStore`. They take f32, f64, bf16 and f16, any
//! memory layout, and answer a wrong shape, dtype or index with an error. 16-bit arithmetic runs in f32 and rounds
//! where PyTorch and transformers do. Operators with a `cpu` module run their own kernels on the CPU; the `composed`
//! module beside it says the same in candle's operations: other devices run it, and the kernels are tested against it.
//! What a kernel computes depends neither on the number of threads nor on how long the processor's vector registers are.
//!
//! [`backward()`] goes back through them with less time, memory and stack than candle's own, which gives the same
//! gradients; [`checkpoint()`] computes activations again instead of keeping them.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use peft_nn::{WeightLayout, linear};
//!
//! let device = Device::Cpu;
//! let weight = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &device)?; // (out, in), frozen
//! let x = Var::new(&[[1f32, -1.]], &device)?;
//!
//! let y = linear(&x, &weight, WeightLayout::OutIn, None)?;
//! assert_eq!(y.to_vec2::<f32>()?, [[-1., -1., -1.]]);
//!
//! let grads = y.sum_all()?.backward()?;
//! let dx = grads.get(&x).ok_or_else(|| candle_core::Error::msg("no gradient"))?;
//! assert_eq!(dx.to_vec2::<f32>()?, [[9., 12.]]);
//! assert!(grads.get(&weight).is_none());
//! # Ok::<(), candle_core::Error>(())
//! ```

mod add;
mod attention;
mod checkpoint;
mod checks;
mod combination;
mod cpu;
mod cross_entropy;
mod div_frozen;
mod embedding;
mod gelu;
mod gelu_new;
mod graph;
mod layer_norm;
mod linear;
mod mul_frozen;
mod rms_norm;
mod rope;
mod sampling;
mod softmax;
mod swiglu;
#[cfg(test)]
mod testing;

pub use add::add;
pub use attention::{
    AttentionOptions, CachedPass, Extension, Heads, KeyValueCache, Packing, Rotary, SequenceId, attention,
    cached_attention, multi_head_attention,
};
pub use checkpoint::{checkpoint, remembered};
pub use combination::combination;
pub use cross_entropy::{
    CrossEntropy, CrossEntropyOptions, IGNORE_INDEX, OutputHead, cross_entropy, cross_entropy_with,
    linear_cross_entropy,
};
pub use div_frozen::div_frozen;
pub use embedding::embedding;
pub use gelu::gelu;
pub use gelu_new::gelu_new;
pub use graph::{backward, backward_with, without_graph};
pub use layer_norm::layer_norm;
pub use linear::{LowRank, WeightLayout, linear, linear_low_rank};
pub use mul_frozen::mul_frozen;
pub use rms_norm::rms_norm;
pub use rope::{RopeLayout, rope, rope_with_layout};
pub use sampling::{Draw, Sampled, Sampling, sample};
pub use softmax::softmax_last_dim;
pub use swiglu::swiglu;
