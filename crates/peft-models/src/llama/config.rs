//! Llama's `config.json`.

use crate::fields::{Fields, all_positive, json_token_ids};
use candle_transformers::models::llama as candle_llama;
use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

/// How rotary frequencies are changed for contexts longer than those of pretraining.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Waves longer than the original context divided by this are of low frequency.
        low_freq_factor: f64,
        /// Waves shorter than the original context divided by this are of high frequency.
        high_freq_factor: f64,
        /// The context length of pretraining.
        original_max_position_embeddings: usize,
    },
}

/// Llama's `config.json`; fields are named as in the file and default to transformers' defaults.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; as many as query heads unless set.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; `hidden_size / num_attention_heads` unless set.
    pub head_dim: Option<usize>,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The id that begins a text.
    pub bos_token_id: Option<u32>,
    /// The ids that end a text; `eos_token_id` in the file.
    pub eos_token_ids: Vec<u32>,
    /// Every field of the file this was read from; what this crate does not know is written back unchanged.
    source: Map<String, Value>,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            source: Map::new(),
        }
    }
}

impl LlamaConfig {
    /// Parses the text of a `config.json` of transformers 4 or 5.
    ///
    /// # Errors
    /// When a field is missing, malformed, or asks for something that is not supported.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_fields(&Fields::parse(text, "config.json")?)
    }

    /// Number of key and value heads.
    pub fn num_key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0))
    }

    pub(super) fn from_fields(fields: &Fields) -> Result<Self> {
        fields.one_of("hidden_act", &["silu"])?;
        let default = Self::default();
        let (rope_theta, rope_scaling) = read_rope(fields)?;
        let config = Self {
            vocab_size: fields.require("vocab_size")?,
            hidden_size: fields.require("hidden_size")?,
            intermediate_size: fields.require("intermediate_size")?,
            num_hidden_layers: fields.require("num_hidden_layers")?,
            num_attention_heads: fields.require("num_attention_heads")?,
            num_key_value_heads: fields.optional("num_key_value_heads")?,
            head_dim: fields.optional("head_dim")?,
            max_position_embeddings: fields.or("max_position_embeddings", default.max_position_embeddings)?,
            rms_norm_eps: fields.or("rms_norm_eps", default.rms_norm_eps)?,
            rope_theta,
            rope_scaling,
            attention_bias: fields.or("attention_bias", false)?,
            mlp_bias: fields.or("mlp_bias", false)?,
            tie_word_embeddings: fields.or("tie_word_embeddings", false)?,
            initializer_range: fields.or("initializer_range", default.initializer_range)?,
            bos_token_id: fields.optional("bos_token_id")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
            source: fields.all().clone(),
        };
        config.check().map_err(|message| fields.error(message))?;
        Ok(config)
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.check().map_err(|message| Error::model("Llama config", message))
    }

    fn check(&self) -> Result<(), String> {
        let (heads, kv_heads, head_dim) = (self.num_attention_heads, self.num_key_value_heads(), self.head_dim());
        all_positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            return Err(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {heads}",
                self.hidden_size
            ));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) || heads.checked_mul(head_dim).is_none() {
            return Err(format!("`head_dim` is {head_dim}, it must be a positive even number"));
        }
        let positive = |name: &str, x: f64| match x.is_finite() && x > 0.0 {
            true => Ok(()),
            false => Err(format!("`{name}` is {x}, it must be positive")),
        };
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("rope_theta", self.rope_theta)?;
        match self.rope_scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low)?;
                match high.is_finite() && high > low {
                    true => Ok(()),
                    false => Err(format!("`high_freq_factor` {high} must be above `low_freq_factor` {low}")),
                }
            }
        }
    }

    /// The fields of a `config.json` that both transformers 4 and 5 read, around those of the file this came from.
    pub(super) fn to_fields(&self) -> Map<String, Value> {
        let mut fields = self.source.clone();
        if fields.is_empty() {
            fields.insert("architectures".into(), json!(["LlamaForCausalLM"]));
            fields.insert("hidden_act".into(), "silu".into());
        }
        let known = [
            ("model_type", json!(super::Llama::MODEL_TYPE)),
            ("vocab_size", json!(self.vocab_size)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_hidden_layers", json!(self.num_hidden_layers)),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_key_value_heads", json!(self.num_key_value_heads())),
            ("head_dim", json!(self.head_dim())),
            ("max_position_embeddings", json!(self.max_position_embeddings)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("attention_bias", json!(self.attention_bias)),
            ("mlp_bias", json!(self.mlp_bias)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("initializer_range", json!(self.initializer_range)),
            ("bos_token_id", json!(self.bos_token_id)),
            ("eos_token_id", json_token_ids(&self.eos_token_ids)),
        ];
        fields.extend(known.map(|(key, value)| (key.to_owned(), value)));
        self.write_rope(&mut fields);
        fields
    }

    /// Leaves the file's own spelling of the rotary fields where it still holds, and else writes that of both versions.
    fn write_rope(&self, fields: &mut Map<String, Value>) {
        let kept = read_rope(&Fields::new(self.source.clone(), ""));
        if !self.source.is_empty() && kept.is_ok_and(|kept| kept == (self.rope_theta, self.rope_scaling.clone())) {
            return;
        }
        let mut parameters = match &self.rope_scaling {
            RopeScaling::Default => json!({ "rope_type": "default" }),
            RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                })
            }
        };
        let scaling = if self.rope_scaling == RopeScaling::Default { Value::Null } else { parameters.clone() };
        parameters["rope_theta"] = json!(self.rope_theta);
        fields.insert("rope_theta".into(), json!(self.rope_theta));
        fields.insert("rope_scaling".into(), scaling);
        fields.insert("rope_parameters".into(), parameters);
    }
}

/// Reads `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).
fn read_rope(fields: &Fields) -> Result<(f64, RopeScaling)> {
    const DEFAULT_THETA: f64 = 10_000.0;
    let outer_theta = fields.optional("rope_theta")?;
    let parameters = match fields.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => fields.object("rope_parameters")?,
    };
    let Some(parameters) = parameters else { return Ok((outer_theta.unwrap_or(DEFAULT_THETA), RopeScaling::Default)) };
    let theta = parameters.optional("rope_theta")?.or(outer_theta).unwrap_or(DEFAULT_THETA);
    if let Some(part) = parameters.optional::<f64>("partial_rotary_factor")?.filter(|part| *part != 1.0) {
        return Err(fields.error(format!("`partial_rotary_factor` is {part}; only whole heads are rotated (1.0)")));
    }
    let named = match parameters.optional::<String>("rope_type")? {
        Some(named) => Some(named),
        None => parameters.optional("type")?,
    };
    let scaling = match named.as_deref() {
        None | Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: parameters.require("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: parameters.require("factor")?,
            low_freq_factor: parameters.require("low_freq_factor")?,
            high_freq_factor: parameters.require("high_freq_factor")?,
            original_max_position_embeddings: parameters.require("original_max_position_embeddings")?,
        },
        Some(other) => {
            return Err(fields.error(format!("`rope_type` is `{other}`; supported: default, linear, llama3")));
        }
    };
    Ok((theta, scaling))
}

impl From<candle_llama::Config> for LlamaConfig {
    fn from(config: candle_llama::Config) -> Self {
        let rope_scaling = match config.rope_scaling {
            Some(candle_llama::Llama3RopeConfig {
                rope_type: candle_llama::Llama3RopeType::Llama3,
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => RopeScaling::Llama3 {
                factor: factor.into(),
                low_freq_factor: low_freq_factor.into(),
                high_freq_factor: high_freq_factor.into(),
                original_max_position_embeddings,
            },
            _ => RopeScaling::Default,
        };
        Self {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: Some(config.num_key_value_heads),
            max_position_embeddings: config.max_position_embeddings,
            rms_norm_eps: config.rms_norm_eps,
            rope_theta: config.rope_theta.into(),
            rope_scaling,
            tie_word_embeddings: config.tie_word_embeddings,
            bos_token_id: config.bos_token_id,
            eos_token_ids: match config.eos_token_id {
                None => vec![],
                Some(candle_llama::LlamaEosToks::Single(id)) => vec![id],
                Some(candle_llama::LlamaEosToks::Multiple(ids)) => ids,
            },
            ..Self::default()
        }
    }
}
