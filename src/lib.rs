//! Parameter-efficient fine-tuning on [candle](https://github.com/huggingface/candle).
//!
//! This crate gathers the others; see the README for a first run.
//!
//! | crate | holds |
//! |---|---|
//! | [`core`] | hosts, the `AdapterMethod` trait, the registry, injection, merging, PEFT's checkpoint format |
//! | [`tinylora`] | TinyLoRA: as few as 13 trained numbers |
//! | [`lora`] | LoRA, and conversion of other adapters to it |
//! | [`export`] | adapters in the formats of MLX-LM and llama.cpp |
//! | [`ia3`] | IA3: learned scaling of activations |
//! | [`lora_xs`] | LoRA-XS: a small trained matrix between frozen singular factors |
//! | [`vera`] | VeRA: trained vectors around shared random matrices |
//! | [`models`] | trainable Llama and GPT-2, patching of unmodified candle-transformers models |
//! | [`train`] | data, loss, optimisers, supervised fine-tuning, evaluation, generation |
//! | [`hub`] | models and adapters from the Hugging Face Hub, and pushing; the feature `hub`, which is on by default |
//! | [`nn`] | operators with gradients that candle-nn lacks |

#[cfg(feature = "hub")]
mod pretrained;
mod tiny_llama;

pub use peft_core as core;
pub use peft_core::{
    Adapter, AdapterConfig, AdapterMethod, Error, ModuleNames, PeftModel, Registry, Result, TargetSpec, adaptable,
};
pub use peft_export as export;
#[cfg(feature = "hub")]
pub use peft_hub as hub;
pub use peft_ia3 as ia3;
pub use peft_lora as lora;
pub use peft_lora_xs as lora_xs;
pub use peft_models as models;
pub use peft_nn as nn;
pub use peft_tinylora as tinylora;
pub use peft_train as train;
pub use peft_vera as vera;
#[cfg(feature = "hub")]
pub use pretrained::{BaseFolder, FromPretrained, Pretrained, PretrainedError};
pub use tiny_llama::TinyLlama;

/// A registry with the methods of this workspace. Add your own with [`Registry::register`].
///
/// ```
/// let registry = candle_peft::registry()?;
/// assert_eq!(registry.methods().collect::<Vec<_>>(), ["IA3", "LORA", "LORA_XS", "TINYLORA", "VERA"]);
/// # Ok::<(), candle_peft::Error>(())
/// ```
pub fn registry() -> Result<Registry> {
    let mut registry = Registry::new();
    registry.register::<peft_tinylora::TinyLoraConfig>()?.register::<peft_lora::LoraConfig>()?;
    registry.register::<peft_ia3::Ia3Config>()?;
    registry.register::<peft_lora_xs::LoraXsConfig>()?.register::<peft_vera::VeraConfig>()?;
    Ok(registry)
}

/// The README's code, compiled and run by the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The code of the guide to the Hub, likewise.
#[cfg(all(doctest, feature = "hub"))]
#[doc = include_str!("../docs/guide/hub.md")]
struct HubGuide;

/// The code of the guide to methods, likewise.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide/methods.md")]
struct Methods;
