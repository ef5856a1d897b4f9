//! LoRA's fields of `adapter_config.json`.

use crate::layer::{LoraLayer, Names};
use crate::number;
use crate::pattern::Patterns;
use candle_core::Tensor;
use peft_core::{
    AdapterLayer, AdapterMethod, BiasMode, Dropout, Error, HostKind, HostSpec, ParamBuilder, ParamKey, Result, Site,
    SiteShapes, TargetSpec, adapter_dtype,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// How fresh factors begin (`init_lora_weights`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
#[non_exhaustive]
pub enum LoraInit {
    /// `true`: A random, B zero, so that the adapter begins as the identity. Embeddings have A zero and B random.
    #[default]
    Identity,
    /// `"gaussian"`: as `true`, with A normal of variance `1 / r`.
    Gaussian,
    /// `false`: both factors random.
    Random,
}

impl TryFrom<Value> for LoraInit {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match &value {
            Value::Bool(true) => Ok(Self::Identity),
            Value::Bool(false) => Ok(Self::Random),
            Value::String(name) if name.eq_ignore_ascii_case("gaussian") => Ok(Self::Gaussian),
            other => Err(format!("`init_lora_weights` is {other}; supported are true, false and \"gaussian\"")),
        }
    }
}

impl From<LoraInit> for Value {
    fn from(init: LoraInit) -> Self {
        match init {
            LoraInit::Identity => true.into(),
            LoraInit::Random => false.into(),
            LoraInit::Gaussian => "gaussian".into(),
        }
    }
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
    /// Ranks of modules that these patterns end; the first that fits counts.
    pub rank_pattern: BTreeMap<String, usize>,
    /// `lora_alpha` of modules that these patterns end.
    #[serde(serialize_with = "number::map")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Which modules are adapted.
    #[serde(flatten)]
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
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            targets: TargetSpec::default(),
            other: Unsupported::default(),
        }
    }
}

/// Declares fields that PEFT writes and that must have the values they are written with by default.
macro_rules! unsupported {
    ($($field:ident = $default:tt),* $(,)?) => {
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(default)]
        struct Unsupported { $($field: Value),* }

        impl Default for Unsupported {
            fn default() -> Self {
                Self { $($field: serde_json::json!($default)),* }
            }
        }

        impl Unsupported {
            fn validate(&self) -> Result<()> {
                let default = Self::default();
                $(
                    let unset = self.$field.is_null() || self.$field == default.$field;
                    if !unset {
                        return Err(Error::config(format!(
                            "`{}` is {}, which is not supported; leave it at {}",
                            stringify!($field), self.$field, default.$field,
                        )));
                    }
                )*
                Ok(())
            }
        }
    };
}

unsupported! {
    alora_invocation_tokens = null,
    arrow_config = null,
    corda_config = null,
    ensure_weight_tying = false,
    eva_config = null,
    kasa_config = null,
    layer_replication = null,
    loftq_config = {},
    lora_bias = false,
    lora_ga_config = null,
    megatron_config = null,
    megatron_core = "megatron.core",
    monteclora_config = null,
    qalora_group_size = 16,
    target_parameters = null,
    trainable_token_indices = null,
    use_bdlora = null,
    use_dora = false,
    use_qalora = false,
    velora_config = null,
}

impl AdapterMethod for LoraConfig {
    const PEFT_TYPE: &'static str = "LORA";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn validate(&self) -> Result<()> {
        if self.r == 0 || self.rank_pattern.values().any(|r| *r == 0) {
            return Err(Error::config("`r` must be a positive integer"));
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return Err(Error::config(format!("`lora_dropout` is {}; it must be between 0 and 1", self.lora_dropout)));
        }
        Patterns::new(&self.rank_pattern)?;
        Patterns::new(&self.alpha_pattern)?;
        self.other.validate()
    }

    fn bias(&self) -> BiasMode {
        match self.bias {
            LoraBias::None => BiasMode::None,
            LoraBias::All => BiasMode::All,
            LoraBias::LoraOnly => BiasMode::Targets,
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        matches!(host.kind, HostKind::Linear | HostKind::Embedding)
    }

    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = Site::fan_in_fan_out(sites).unwrap_or(self.fan_in_fan_out);
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let (ranks, alphas) = (Patterns::new(&self.rank_pattern)?, Patterns::new(&self.alpha_pattern)?);
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for (index, site) in sites.iter().enumerate() {
            let r = ranks.find(&site.path).unwrap_or(self.r);
            let alpha = alphas.find(&site.path).unwrap_or(self.lora_alpha);
            let scale = if self.use_rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 };
            layers.push(Arc::new(self.layer(site, index, r, scale, params)?));
        }
        Ok(layers)
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        for names in [Names::LINEAR, Names::EMBEDDING] {
            if let (Some(a), Some(b)) = (tensors.get(names.a), tensors.get(names.b)) {
                let ((_, inner), (outer, _)) = (a.dims2().ok()?, b.dims2().ok()?);
                return Some(if names == Names::LINEAR { (outer, inner) } else { (inner, outer) });
            }
        }
        None
    }
}

impl LoraConfig {
    /// LoRA of rank `r` with `lora_alpha = r`, so that its scaling is 1.
    pub fn with_rank(r: usize, targets: TargetSpec) -> Self {
        Self { r, lora_alpha: r as f64, targets, ..Self::default() }
    }

    fn layer(
        &self,
        site: &Site,
        index: usize,
        r: usize,
        scale: f64,
        params: &mut ParamBuilder<'_>,
    ) -> Result<LoraLayer> {
        let HostSpec { kind, rows, cols, ref device, dtype, embed_scale, .. } = site.spec;
        let dtype = adapter_dtype(dtype);
        let (names, shape_a, shape_b) = match kind {
            HostKind::Embedding => (Names::EMBEDDING, (r, rows), (cols, r)),
            _ => (Names::LINEAR, (r, cols), (rows, r)),
        };
        let (key_a, key_b) = (ParamKey::site(&site.path, names.a), ParamKey::site(&site.path, names.b));
        // The generator is read in PyTorch's order, discarded draws included, so that equal seeds give equal adapters.
        let fresh = if params.is_loading() { None } else { Some(self.fresh(kind, shape_a, shape_b, params)) };
        let (values_a, values_b) = fresh.unzip();
        let tensor = |values: Option<Vec<f32>>, shape| Ok(Tensor::from_vec(values.unwrap_or_default(), shape, device)?);
        let a = params.trainable(key_a, shape_a, dtype, device, || tensor(values_a, shape_a))?;
        let b = params.trainable(key_b, shape_b, dtype, device, || tensor(values_b, shape_b))?;
        let dropout = Dropout::new(self.lora_dropout as f32, index as u64);
        Ok(LoraLayer::new(kind, a, b, scale, embed_scale, dropout))
    }

    /// Initial values as PEFT draws them.
    fn fresh(
        &self,
        kind: HostKind,
        a: (usize, usize),
        b: (usize, usize),
        params: &mut ParamBuilder<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let rng = params.rng();
        let (count_a, count_b) = (a.0 * a.1, b.0 * b.1);
        if kind == HostKind::Embedding {
            let first = (rng.normal(0.0, 1.0, count_a), rng.normal(0.0, 1.0, count_b));
            return match self.init_lora_weights {
                LoraInit::Random => first,
                _ => (vec![0.0; count_a], rng.normal(0.0, 1.0, count_b)),
            };
        }
        let slope = 5f64.sqrt();
        let first = (rng.kaiming_uniform(a.1, slope, count_a), rng.kaiming_uniform(b.1, slope, count_b));
        match self.init_lora_weights {
            LoraInit::Random => first,
            LoraInit::Identity => (rng.kaiming_uniform(a.1, slope, count_a), vec![0.0; count_b]),
            LoraInit::Gaussian => (rng.normal(0.0, 1.0 / a.0 as f64, count_a), vec![0.0; count_b]),
        }
    }
}
