//! LoRA-XS ([Bałazy et al. 2024](https://arxiv.org/abs/2405.17604)): a small trained matrix between the frozen singular factors of
//! each weight.
//!
//! ```text
//! delta W = lora_xs_alpha / r * B R A      A = S V^T   (r, cols)   frozen
//!                                          B = U       (rows, r)   frozen
//!                                          R           (r, r)      trained
//! ```
//!
//! where `U S V^T` are the `r` leading singular triplets of `W` `(rows, cols)`. A module costs `r * r` trained numbers, whatever its
//! size.
//!
//! # What follows the paper
//!
//! - A and B come from the truncated singular value decomposition and are frozen; R alone is trained.
//! - The singular values are on the side of the input. The paper writes `x W + x A R B` with `W` `(in, out)` and `A = U S`,
//!   `B = V^T` of that matrix, and its code decomposes the transposed weight of a linear layer. In terms of PyTorch's weight
//!   `(out, in)` that is `A = S V^T` and `B = U`, as above.
//! - R begins normal with a standard deviation of 1e-5 (`init_std`).
//! - Deltas are scaled by alpha over r, as in LoRA, on which the paper's code is built.
//!
//! # What does not
//!
//! - The decomposition is complete and then truncated; the paper's code takes a randomised one.
//! - Embeddings can be adapted: a token is a one-hot input, so `B = U S` `(entries, r)` and `A = V^T`.
//! - `init_std` of 0 begins at the exact identity. R still gets a gradient, because A and B are not zero.
//! - `r` may exceed the smaller side of a weight, and is the smaller side there. The scaling keeps the config's `r`.
//!
//! # Files
//!
//! PEFT 0.21.2 has no LoRA-XS, so it cannot read these files: the `peft_type` `LORA_XS`, the config's fields and the tensor names are
//! this crate's own, in PEFT's style. A module has `lora_xs_A`, `lora_xs_B` and `lora_xs_R`. A and B are stored, but in compact
//! checkpoints: the signs of singular vectors are free, and a trained R belongs to one choice of them. A conversion to LoRA is exact, and PEFT reads that.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable, nn::Linear};
//! use peft_lora_xs::LoraXsConfig;
//!
//! struct Mlp {
//!     up: Linear,
//!     down: Linear,
//! }
//! adaptable!(Mlp { up, down });
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::Cpu;
//! let base = Mlp {
//!     up: Linear::new(Tensor::randn(0f32, 1., (16, 8), &device)?, None),
//!     down: Linear::new(Tensor::randn(0f32, 1., (8, 16), &device)?, None),
//! };
//! let mut model = PeftModel::new(base);
//! model.add_adapter("default", LoraXsConfig::with_rank(4, TargetSpec::new(ModuleNames::all_linear())))?;
//! assert_eq!(model.param_counts()?.trainable, 2 * 4 * 4);
//!
//! let y = model.base().up.forward(&Tensor::ones((1, 8), DType::F32, &device)?)?;
//! let y = model.base().down.forward(&y)?;
//! model.audit_gradients(&y.sum_all()?.backward()?)?;
//! # Ok(()) }
//! ```

mod config;
mod layer;
mod method;

pub use config::{LoraXsBias, LoraXsConfig};
