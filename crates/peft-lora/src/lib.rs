//! LoRA ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) as Python's PEFT stores and computes it, and the conversion of other
//! adapters to it.
//!
//! LoRA is what servers load. [`LoraConfig`] trains and runs it; [`to_lora`] turns any adapter whose delta is a product of two
//! factors, such as a TinyLoRA, into an ordinary LoRA without a singular value decomposition and without the base model.
//! [`to_lora_with`] approximates any adapter by a LoRA of a chosen [`Rank`], and says what each module loses.
//!
//! [`combine`] and [`add_weighted_adapter`] make one LoRA of several.
//!
//! Not every option of PEFT's LoRA is here: one that is not supported is an error when it is set.

mod config;
mod convert;
mod dora;
mod init;
mod layer;
mod method;
mod number;
mod pattern;
mod unsupported;
mod weighted;

pub use config::{LoraBias, LoraConfig};
pub use convert::{ConvertedLora, ConvertedModule, Rank, to_lora, to_lora_with};
pub use init::LoraInit;
pub use weighted::{Combination, WeightedAdapter, add_weighted_adapter, combine};
