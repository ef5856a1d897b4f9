//! VeRA's fields of `adapter_config.json`.

use peft_core::{Error, Result, TargetSpec};
use serde::{Deserialize, Serialize};

/// Which biases are trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VeraBias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of adapted layers.
    VeraOnly,
}

/// VeRA: `delta W = diag(lambda_b) B diag(lambda_d) A` with A and B frozen, random and shared, and trained vectors.
///
/// Fields have PEFT's names, defaults and meaning. Linear layers (Conv1D among them) can be adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct VeraConfig {
    /// The rank of the projections. Ranks are larger than LoRA's: a rank costs one trained number per layer.
    pub r: usize,
    /// The seed of the projections.
    pub projection_prng_key: i64,
    /// Whether checkpoints hold the projections. Without them they are drawn again from `projection_prng_key`, and the file is
    /// smaller.
    pub save_projection: bool,
    /// Probability of dropping an input feature in training.
    pub vera_dropout: f64,
    /// What every element of `lambda_d` is at first. The paper advises 0.1 or less.
    pub d_initial: f64,
    /// Whether base weights are stored `(in, out)`. Told from the model: what a config says here is replaced.
    pub fan_in_fan_out: bool,
    /// Which biases are trained too.
    pub bias: VeraBias,
    /// Whether fresh vectors begin as the identity: `lambda_b` zero, `lambda_d` at `d_initial`. Otherwise `lambda_b` is one and
    /// `lambda_d` standard normal.
    pub init_weights: bool,
    /// Which modules are adapted. VeRA has no `exclude_modules`: setting it is an error.
    #[serde(flatten)]
    pub targets: TargetSpec,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self {
            r: 256,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            fan_in_fan_out: false,
            bias: VeraBias::None,
            init_weights: true,
            targets: TargetSpec::default(),
        }
    }
}

impl VeraConfig {
    /// PEFT's defaults for these targets. Every field is public, and the common ones have a `with_` method.
    pub fn new(targets: TargetSpec) -> Self {
        Self { targets, ..Self::default() }
    }

    /// The same config with projections of another rank.
    pub fn with_r(mut self, r: usize) -> Self {
        self.r = r;
        self
    }

    /// The same config with another seed of the projections.
    pub fn with_projection_prng_key(mut self, key: i64) -> Self {
        self.projection_prng_key = key;
        self
    }

    /// The same config with or without projections in its checkpoints.
    pub fn with_save_projection(mut self, save_projection: bool) -> Self {
        self.save_projection = save_projection;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.r == 0 {
            return Err(Error::config("`r` is 0; it must be a positive integer"));
        }
        if !(0.0..=1.0).contains(&self.vera_dropout) {
            return Err(Error::config(format!("`vera_dropout` is {}; it must be between 0 and 1", self.vera_dropout)));
        }
        // An f32 holds it, whatever the base is.
        if !(self.d_initial as f32).is_finite() {
            return Err(Error::config(format!("`d_initial` is {}; it must be a finite number", self.d_initial)));
        }
        if self.targets.exclude_modules.is_some() {
            return Err(Error::config("VeRA has no `exclude_modules`; select modules with `target_modules` alone"));
        }
        Ok(())
    }
}
