//! Adapters in the formats of programs that do not read PEFT's: [MLX-LM](https://github.com/ml-explore/mlx-lm) and
//! [llama.cpp](https://github.com/ggml-org/llama.cpp).
//!
//! Both hold LoRA and nothing else, so an adapter can be exported when each of its deltas is a product of two factors, as those of
//! LoRA and TinyLoRA are. An export computes what the adapter computes; what a format cannot hold is an error that names the
//! module, never left out. Neither needs the weights of the base model, only its `config.json` ([`BaseModel`]).
//!
//! ```no_run
//! use peft_core::{Registry, checkpoint::DetachedAdapter};
//! use peft_export::{BaseModel, to_gguf, to_mlx};
//!
//! # fn main() -> peft_core::Result<()> {
//! # let registry = Registry::new();
//! let adapter = DetachedAdapter::open("adapter", &registry)?;
//! let base = BaseModel::open("SmolLM2-135M-Instruct")?;
//! to_mlx(&adapter, &base)?.save("adapter-mlx")?;
//! to_gguf(&adapter, &base)?.save("adapter.gguf")?;
//! # Ok(()) }
//! ```

mod architecture;
mod base;
mod factors;
mod gguf;
mod mlx;

pub use architecture::Architecture;
pub use base::BaseModel;
pub use gguf::{GgufAdapter, to_gguf};
pub use mlx::{MlxAdapter, to_mlx};
