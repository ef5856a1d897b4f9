//! LoRA's fields of `adapter_config.json`.

use crate::init::LoraInit;
use crate::number;
use crate::pattern::Patterns;
use crate::unsupported::Unsupported;
use indexmap::IndexMap;
use peft_core::{Error, Result, TargetSpec};
use serde::{Deserialize, Serialize};

/// Which biases are trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoraBias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

/// LoRA: `delta W = scaling * B A` with trained A `(r, in)` and B `(out, r)`.
///
/// Fields have PEFT's names, defaults and meaning.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LoraConfig {
    /// The rank of the factors.
    pub r: usize,
    /// The scaling's numerator: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    #[serde(serialize_with = "number::one")]
    pub lora_alpha: f64,
    /// Probability of dropping an input feature in training. Embeddings ignore it, as in PEFT.
    pub lora_dropout: f64,
    /// Whether base weights are stored `(in, out)`; told from the model, kept for PEFT.
    pub fan_in_fan_out: bool,
    /// Which biases are trained too.
    pub bias: LoraBias,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// How fresh factors begin.
    pub init_lora_weights: LoraInit,
    /// Give B a trained bias too: `y + scaling * (B A x + b)`. Merging adds it to the layer's own, so the layer must have one.
    pub lora_bias: bool,
    /// Weight-decomposed LoRA ([DoRA](https://arxiv.org/abs/2402.09353)): a trained magnitude scales each row of `W + delta W`
    /// (each column of an embedding) after it was brought to length 1.
    pub use_dora: bool,
    /// Ranks of modules that these patterns end; the first in this order that fits counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// `lora_alpha` of modules that these patterns end; the first in this order that fits counts.
    #[serde(serialize_with = "number::map")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Which modules are adapted.
    #[serde(flatten, serialize_with = "TargetSpec::serialize_with_exclude_modules")]
    pub targets: TargetSpec,
    /// PEFT's options that are not supported; each must have its default.
    #[serde(flatten)]
    other: Unsupported,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            fan_in_fan_out: false,
            bias: LoraBias::None,
            use_rslora: false,
            init_lora_weights: LoraInit::Identity,
            lora_bias: false,
            use_dora: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            targets: TargetSpec::default(),
            other: Unsupported::default(),
        }
    }
}

impl LoraConfig {
    /// LoRA of rank `r` with `lora_alpha = r`, so that its scaling is 1.
    pub fn with_rank(r: usize, targets: TargetSpec) -> Self {
        Self { r, lora_alpha: r as f64, targets, ..Self::default() }
    }

    /// Checks every field by itself and against the others.
    pub(crate) fn check(&self) -> Result<()> {
        if self.r == 0 || self.rank_pattern.values().any(|r| *r == 0) {
            return Err(Error::config("`r` must be a positive integer"));
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return Err(Error::config(format!("`lora_dropout` is {}; it must be between 0 and 1", self.lora_dropout)));
        }
        if self.lora_bias && self.use_dora {
            return Err(Error::config("`lora_bias` and `use_dora` exclude each other"));
        }
        if self.lora_bias && !matches!(self.init_lora_weights, LoraInit::Identity | LoraInit::Random) {
            return Err(Error::config("`lora_bias` needs `init_lora_weights` true or false"));
        }
        Patterns::new(&self.rank_pattern)?;
        Patterns::new(&self.alpha_pattern)?;
        self.other.check()
    }
}
