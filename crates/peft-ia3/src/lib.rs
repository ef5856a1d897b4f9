//! IA3 ([Liu et al. 2022](https://arxiv.org/abs/2205.05638)) as Python's PEFT stores and computes it: learned vectors scale what
//! layers let through.
//!
//! A layer's outputs are multiplied by one trained number each, its bias included; a *feed-forward* layer has its inputs multiplied
//! instead. Nothing is added, so merged weights cost what the base model's cost, and the change of a weight has whatever rank the
//! weight has: an IA3 adapter is not a LoRA, and cannot be converted to one.
//!
//! ```
//! use peft_core::{PeftModel, nn::Linear};
//! use peft_ia3::Ia3Config;
//! # use candle_core::{Device, Module, Tensor};
//!
//! struct Mlp {
//!     up_proj: Linear,
//!     down_proj: Linear,
//! }
//! peft_core::adaptable!(Mlp { up_proj, down_proj });
//!
//! # let weight = |rows, cols| Tensor::ones((rows, cols), candle_core::DType::F32, &Device::Cpu);
//! let mlp = Mlp { up_proj: Linear::new(weight(8, 4)?, None), down_proj: Linear::new(weight(4, 8)?, None) };
//! let mut model = PeftModel::new(mlp);
//! let adapter = model.add_adapter("default", Ia3Config::new(["up_proj", "down_proj"], ["down_proj"]))?;
//! assert_eq!(adapter.params.trainable_count(), 8 + 8); // the outputs of up_proj, the inputs of down_proj
//! # Ok::<(), peft_core::Error>(())
//! ```

mod config;
mod defaults;
mod feedforward;
mod layer;
mod method;

pub use config::Ia3Config;
