//! GPT-2's `config.json`.

use crate::fields::{Fields, all_positive, json_token_ids};
use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

/// GPT-2's `config.json`; fields are named as in the file and default to transformers' defaults.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gpt2Config {
    /// Number of token ids.
    pub vocab_size: usize,
    /// The longest sequence.
    pub n_positions: usize,
    /// Length of a hidden state.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Number of heads.
    pub n_head: usize,
    /// Width of the feed-forward layers; four times `n_embd` unless set.
    pub n_inner: Option<usize>,
    /// Added to the variance in norms.
    pub layer_norm_epsilon: f64,
    /// Whether attention scores are divided by the square root of the width of a head.
    pub scale_attn_weights: bool,
    /// Whether attention scores are divided by the number of their block, counted from one, too.
    pub scale_attn_by_inverse_layer_idx: bool,
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

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: Some(50_256),
            eos_token_ids: vec![50_256],
            source: Map::new(),
        }
    }
}

impl Gpt2Config {
    /// Parses the text of a `config.json` of transformers 4 or 5.
    ///
    /// # Errors
    /// When a field is missing, malformed, or asks for something that is not supported.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_fields(&Fields::parse(text, "config.json")?)
    }

    /// Width of the feed-forward layers.
    pub fn n_inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    /// Standard deviation of fresh weights that feed the residual stream, which every block adds to twice.
    pub(super) fn residual_initializer_range(&self) -> f64 {
        self.initializer_range / (2.0 * self.n_layer as f64).sqrt()
    }

    pub(super) fn from_fields(fields: &Fields) -> Result<Self> {
        fields.one_of("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
        if fields.or("add_cross_attention", false)? {
            return Err(fields.error("`add_cross_attention` is true; cross-attention is not supported"));
        }
        let default = Self::default();
        let config = Self {
            vocab_size: fields.require("vocab_size")?,
            n_positions: fields.require("n_positions")?,
            n_embd: fields.require("n_embd")?,
            n_layer: fields.require("n_layer")?,
            n_head: fields.require("n_head")?,
            n_inner: fields.optional("n_inner")?,
            layer_norm_epsilon: fields.or("layer_norm_epsilon", default.layer_norm_epsilon)?,
            scale_attn_weights: fields.or("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: fields.or("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: fields.or("tie_word_embeddings", true)?,
            initializer_range: fields.or("initializer_range", default.initializer_range)?,
            bos_token_id: fields.optional("bos_token_id")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
            source: fields.all().clone(),
        };
        config.check().map_err(|message| fields.error(message))?;
        Ok(config)
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.check().map_err(|message| Error::model("GPT-2 config", message))
    }

    fn check(&self) -> Result<(), String> {
        all_positive(&[
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.n_inner()),
        ])?;
        if !self.n_embd.is_multiple_of(self.n_head) || self.n_embd.checked_mul(4).is_none() {
            return Err(format!("`n_embd` {} is not a multiple of `n_head` {}", self.n_embd, self.n_head));
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0) {
            return Err(format!("`layer_norm_epsilon` is {}, it must be positive", self.layer_norm_epsilon));
        }
        Ok(())
    }

    /// The fields of a `config.json`, around those of the file this came from.
    pub(super) fn to_fields(&self) -> Map<String, Value> {
        let mut fields = self.source.clone();
        if fields.is_empty() {
            fields.insert("architectures".into(), json!(["GPT2LMHeadModel"]));
            fields.insert("activation_function".into(), "gelu_new".into());
        }
        let known = [
            ("model_type", json!(super::Gpt2::MODEL_TYPE)),
            ("vocab_size", json!(self.vocab_size)),
            ("n_positions", json!(self.n_positions)),
            ("n_embd", json!(self.n_embd)),
            ("n_layer", json!(self.n_layer)),
            ("n_head", json!(self.n_head)),
            ("n_inner", json!(self.n_inner)),
            ("layer_norm_epsilon", json!(self.layer_norm_epsilon)),
            ("scale_attn_weights", json!(self.scale_attn_weights)),
            ("scale_attn_by_inverse_layer_idx", json!(self.scale_attn_by_inverse_layer_idx)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("initializer_range", json!(self.initializer_range)),
            ("bos_token_id", json!(self.bos_token_id)),
            ("eos_token_id", json_token_ids(&self.eos_token_ids)),
        ];
        fields.extend(known.map(|(key, value)| (key.to_owned(), value)));
        fields
    }
}
