//! TinyLoRA's fields of `adapter_config.json`.

use crate::Groups;
use peft_core::{Error, Result, TargetSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which biases are trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TinyLoraBias {
    /// `"none"`: none.
    #[default]
    #[serde(rename = "none")]
    None,
    /// `"all"`: every bias of the model.
    #[serde(rename = "all")]
    All,
    /// `"tinylora_only"`: those of adapted layers.
    #[serde(rename = "tinylora_only")]
    TinyLoraOnly,
}

/// How fresh trained vectors begin (`init_weights`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
#[non_exhaustive]
pub enum TinyLoraInit {
    /// `true`: zeros, so that the adapter begins as the identity.
    #[default]
    Zeros,
    /// `"uniform"`: uniform between `-init_v_bound` and `init_v_bound`. Drawn in f32 as PyTorch does for an f32 base, and for
    /// other bases too, where PyTorch's draw would have the base's precision.
    Uniform,
    /// `false`: anything but the identity. PEFT leaves the memory as it finds it; here this draws as
    /// [`Uniform`](Self::Uniform) does.
    Unspecified,
}

impl TryFrom<Value> for TinyLoraInit {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match &value {
            Value::Bool(true) => Ok(Self::Zeros),
            Value::Bool(false) => Ok(Self::Unspecified),
            Value::String(name) if name == "uniform" => Ok(Self::Uniform),
            other => Err(format!("`init_weights` is {other}; it must be true, false or \"uniform\"")),
        }
    }
}

impl From<TinyLoraInit> for Value {
    fn from(init: TinyLoraInit) -> Self {
        match init {
            TinyLoraInit::Zeros => true.into(),
            TinyLoraInit::Unspecified => false.into(),
            TinyLoraInit::Uniform => "uniform".into(),
        }
    }
}

/// TinyLoRA: `delta W = B (sum_i v[i] P[i]) A` with frozen A, B, P and a trained v of `u` numbers.
///
/// Fields have PEFT's names, defaults and meaning. Linear layers (Conv1D among them) and embeddings can be adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TinyLoraConfig {
    /// How many singular directions of each weight are kept; less where the weight is smaller. The paper advises 2.
    pub r: usize,
    /// The length of the trained vectors.
    pub u: usize,
    /// How far modules share trained vectors, from 0 (each has its own) to 1 (all share one); see [`Groups`].
    pub weight_tying: f64,
    /// The seed of the first module's projection; the n-th module after it adds n.
    pub projection_seed: i64,
    /// Whether checkpoints hold the projections. Without them they are drawn again from `projection_seed`, and the file is
    /// smaller.
    pub save_projection: bool,
    /// How far from zero `"uniform"` vectors begin at the most.
    pub init_v_bound: f64,
    /// Probability of dropping an input feature in training; for an embedding, an entry of a looked-up row of B.
    pub tinylora_dropout: f64,
    /// Whether base weights are stored `(in, out)`. Told from the model: what a config says here is replaced.
    pub fan_in_fan_out: bool,
    /// Which biases are trained too.
    pub bias: TinyLoraBias,
    /// How fresh trained vectors begin.
    pub init_weights: TinyLoraInit,
    /// Which modules are adapted. TinyLoRA has no `exclude_modules`: setting it is an error.
    #[serde(flatten)]
    pub targets: TargetSpec,
}

impl Default for TinyLoraConfig {
    fn default() -> Self {
        Self {
            r: 2,
            u: 64,
            weight_tying: 0.0,
            projection_seed: 42,
            save_projection: true,
            init_v_bound: 0.02,
            tinylora_dropout: 0.0,
            fan_in_fan_out: false,
            bias: TinyLoraBias::None,
            init_weights: TinyLoraInit::Zeros,
            targets: TargetSpec::default(),
        }
    }
}

impl TinyLoraConfig {
    /// PEFT's defaults for these targets. Every field is public, and the common ones have a `with_` method.
    pub fn new(targets: TargetSpec) -> Self {
        Self { targets, ..Self::default() }
    }

    /// The same config with another number of singular directions.
    pub fn with_r(mut self, r: usize) -> Self {
        self.r = r;
        self
    }

    /// The same config with trained vectors of another length.
    pub fn with_u(mut self, u: usize) -> Self {
        self.u = u;
        self
    }

    /// The same config with another degree of sharing, between 0 and 1.
    pub fn with_weight_tying(mut self, weight_tying: f64) -> Self {
        self.weight_tying = weight_tying;
        self
    }

    /// The same config with another beginning of fresh vectors.
    pub fn with_init_weights(mut self, init_weights: TinyLoraInit) -> Self {
        self.init_weights = init_weights;
        self
    }

    /// How this many adapted modules share trained vectors.
    pub fn groups(&self, modules: usize) -> Groups {
        Groups::new(modules, self.weight_tying)
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in [("r", self.r), ("u", self.u)] {
            if value == 0 {
                return Err(Error::config(format!("`{name}` is 0; it must be a positive integer")));
            }
        }
        for (name, value) in [("weight_tying", self.weight_tying), ("tinylora_dropout", self.tinylora_dropout)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::config(format!("`{name}` is {value}; it must be between 0 and 1")));
            }
        }
        let draws = self.init_weights != TinyLoraInit::Zeros;
        if draws && !(self.init_v_bound >= 0.0 && self.init_v_bound <= f64::from(f32::MAX)) {
            return Err(Error::config(format!(
                "`init_v_bound` is {}; it must be a finite number of at least 0",
                self.init_v_bound
            )));
        }
        if self.targets.exclude_modules.is_some() {
            return Err(Error::config("TinyLoRA has no `exclude_modules`; select modules with `target_modules` alone"));
        }
        Ok(())
    }
}
