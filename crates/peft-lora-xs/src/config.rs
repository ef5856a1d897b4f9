//! LoRA-XS's fields of `adapter_config.json`.

use peft_core::{Error, Result, TargetSpec};
use serde::{Deserialize, Serialize};

/// Which biases are trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoraXsBias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of adapted layers.
    LoraXsOnly,
}

/// LoRA-XS: `delta W = lora_xs_alpha / r * B R A` with A and B from the weight's singular value decomposition and a trained R.
///
/// Linear layers (Conv1D among them) and embeddings can be adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LoraXsConfig {
    /// How many singular directions of each weight are kept; less where the weight is smaller. A module trains `r * r` numbers.
    pub r: usize,
    /// The scaling's numerator: deltas are scaled by `lora_xs_alpha / r`.
    pub lora_xs_alpha: f64,
    /// Probability of dropping an input feature in training; for an embedding, an entry of a looked-up row of B.
    pub lora_xs_dropout: f64,
    /// The standard deviation of a fresh R; 0 begins at the exact identity.
    pub init_std: f64,
    /// Whether base weights are stored `(in, out)`. Told from the model: what a config says here is replaced.
    pub fan_in_fan_out: bool,
    /// Which biases are trained too.
    pub bias: LoraXsBias,
    /// Which modules are adapted.
    #[serde(flatten)]
    pub targets: TargetSpec,
}

impl Default for LoraXsConfig {
    /// LoRA's rank and alpha, and the paper's beginning of R.
    fn default() -> Self {
        Self {
            r: 8,
            lora_xs_alpha: 8.0,
            lora_xs_dropout: 0.0,
            init_std: 1e-5,
            fan_in_fan_out: false,
            bias: LoraXsBias::None,
            targets: TargetSpec::default(),
        }
    }
}

impl LoraXsConfig {
    /// LoRA-XS of rank `r` with `lora_xs_alpha = r`, so that its scaling is 1. Every field is public.
    pub fn with_rank(r: usize, targets: TargetSpec) -> Self {
        Self { r, lora_xs_alpha: r as f64, targets, ..Self::default() }
    }

    /// The same config with another standard deviation of a fresh R; 0 begins at the exact identity.
    pub fn with_init_std(mut self, init_std: f64) -> Self {
        self.init_std = init_std;
        self
    }

    /// What `B R A` is multiplied with.
    pub fn scaling(&self) -> f64 {
        self.lora_xs_alpha / self.r as f64
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.r == 0 {
            return Err(Error::config("`r` is 0; it must be a positive integer"));
        }
        if !(0.0..=1.0).contains(&self.lora_xs_dropout) {
            return Err(Error::config(format!(
                "`lora_xs_dropout` is {}; it must be between 0 and 1",
                self.lora_xs_dropout
            )));
        }
        if !self.lora_xs_alpha.is_finite() {
            return Err(Error::config(format!(
                "`lora_xs_alpha` is {}; it must be a finite number",
                self.lora_xs_alpha
            )));
        }
        if !(self.init_std >= 0.0 && self.init_std <= f64::from(f32::MAX)) {
            return Err(Error::config(format!(
                "`init_std` is {}; it must be a finite number of at least 0",
                self.init_std
            )));
        }
        Ok(())
    }
}
