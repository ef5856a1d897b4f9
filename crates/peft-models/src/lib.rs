//! Language models that can be adapted and trained, and patching of those that cannot.
//!
//! The models of candle-transformers are made for inference: most of their operations have no gradient, and they return the
//! last position's logits only. The models here are built from the hosts of [`peft_core::nn`] and the operators of `peft_nn`, so every
//! weight and every adapter can be trained. Their modules are named and ordered as in transformers, and they read and write
//! Hugging Face folders.
//!
//! - [`Llama`] and [`Gpt2`] are models; [`CausalLm`] is whichever of them a folder holds, read by [`load_model`].
//! - [`CausalLanguageModel`] is what they share: logits for chosen positions, padding, a [`KvCache`] for generation, saving.
//! - [`PatchedWeights`] adds adapters to the weights of any unmodified candle-transformers model while it loads.
//!
//! ```no_run
//! use candle_core::{Device, Tensor};
//! use peft_models::{CausalLanguageModel, ForwardOptions, load_model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = load_model("path/to/SmolLM2-135M", None, &Device::Cpu)?;
//! let input_ids = Tensor::new(&[[504u32, 3575, 282]], &Device::Cpu)?;
//! let logits = model.forward(&input_ids, ForwardOptions::last())?;
//! assert_eq!(logits.dims(), [1, 1, model.shape().vocab_size]);
//! # Ok(()) }
//! ```

mod blocks;
mod cache;
mod causal_lm;
mod checkpointing;
mod fields;
mod files;
mod forward;
pub mod gpt2;
mod layers;
pub mod llama;
mod patch;
mod sequence;

pub use cache::KvCache;
pub use causal_lm::{CausalLanguageModel, CausalLm, ModelShape, load_model};
pub use checkpointing::{Activations, Checkpointing};
pub use files::{Companions, ModelFiles};
pub use forward::{ForwardOptions, LogitPositions};
pub use gpt2::{Gpt2, Gpt2Config};
pub use llama::{Llama, LlamaConfig};
pub use patch::PatchedWeights;
pub use peft_nn::{Extension, SequenceId};
