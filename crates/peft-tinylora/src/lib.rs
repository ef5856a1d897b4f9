//! TinyLoRA: a frozen model adapted by as few as one trained number.
//!
//! Each adapted weight `W` `(rows, cols)` keeps its leading singular directions as frozen factors, and a trained vector mixes
//! them through frozen random matrices:
//!
//! ```text
//! delta W = B R A      A = sqrt(S) V^T   (r, cols)
//!                      B = U sqrt(S)     (rows, r)
//!                      R = sum_i v[i] P[i]   (r, r), with P (u, r, r) random and v (u) trained
//! ```
//!
//! Modules that are tied share one `v`, so the trained numbers are `groups * u`: 13 for a whole model with `u = 13` and
//! `weight_tying = 1`. The method is that of [Learning to Reason in 13 Parameters](https://arxiv.org/abs/2602.04118); files,
//! numbers and random draws are those of Python's PEFT.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable, nn::Linear};
//! use peft_tinylora::TinyLoraConfig;
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
//! let config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0);
//! let mut model = PeftModel::new(base);
//! model.add_adapter("default", config)?;
//! assert_eq!(model.param_counts()?.trainable, 13);
//!
//! let y = model.base().up.forward(&Tensor::ones((1, 8), DType::F32, &device)?)?;
//! let grads = y.sum_all()?.backward()?;
//! model.audit_gradients(&grads)?;
//! # Ok(()) }
//! ```

mod config;
mod layer;
mod method;
mod precision;
mod projection;
mod tying;

pub use config::{TinyLoraBias, TinyLoraConfig, TinyLoraInit};
pub use tying::Groups;
