//! VeRA ([Kopiczko et al. 2023](https://arxiv.org/abs/2310.11454)) as Python's PEFT stores and computes it: all adapted layers share
//! one pair of frozen random matrices, and each trains two vectors that scale them.
//!
//! ```text
//! delta W = diag(lambda_b) B[:rows] diag(lambda_d) A[:, :cols]
//!
//! A         (r, widest)     shared, frozen, random
//! B         (tallest, r)    shared, frozen, random
//! lambda_d  (r)             trained, one per layer
//! lambda_b  (rows)          trained, one per layer, zero at first
//! ```
//!
//! A and B are as large as the largest adapted layer in each direction; a smaller layer uses their first columns and rows. They follow
//! from `projection_prng_key` bit for bit, so a file may leave them out (`save_projection`).
//!
//! # Several adapters
//!
//! PEFT's adapters on one model all use the projections of the first: another key is refused, a larger layer or rank is refused or
//! fails in `forward`, and a smaller one is saved with projections that no model but the one with both adapters can load. Here every
//! adapter has the A and B that its own config asks for, which are those of PEFT's first adapter. A file of a second adapter is read
//! where its projections have the size that its own layers need, and refused otherwise. One without projections means what it means in
//! PEFT when it is loaded alone, which is not what it meant beside a larger first adapter.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable, nn::Linear};
//! use peft_vera::VeraConfig;
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
//! model.add_adapter("default", VeraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_r(32))?;
//! assert_eq!(model.param_counts()?.trainable, (16 + 32) + (8 + 32));
//!
//! let y = model.base().up.forward(&Tensor::ones((1, 8), DType::F32, &device)?)?;
//! let y = model.base().down.forward(&y)?;
//! model.audit_gradients(&y.sum_all()?.backward()?)?;
//! # Ok(()) }
//! ```

mod config;
mod layer;
mod method;
mod projections;

pub use config::{VeraBias, VeraConfig};
