//! Llama (Touvron et al. 2023, arXiv:2302.13971), and the many models of its architecture.

mod attention;
mod block;
mod config;
mod mlp;
mod rope;

pub use config::{LlamaConfig, RopeScaling};

use crate::blocks::Blocks;
use crate::fields::Fields;
use crate::files::{Architecture, ModelFiles};
use crate::layers::{body, embedding, output_head, rms_norm};
use crate::sequence::Sequence;
use crate::{Activations, CausalLanguageModel, ForwardOptions, ModelShape};
use block::Block;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use peft_core::nn::{Embedding, Linear, RmsNorm};
use peft_core::{Result, adaptable};
use rope::Rope;
use serde_json::{Map, Value};
use std::path::Path;

/// A Llama built from hosts, with gradients everywhere.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use peft_models::{CausalLanguageModel, ForwardOptions, Llama, LlamaConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // From scratch: with a `VarMap` behind the builder every weight is trainable.
/// let mut config = LlamaConfig::default();
/// config.vocab_size = 16;
/// config.hidden_size = 8;
/// config.intermediate_size = 16;
/// config.num_hidden_layers = 2;
/// config.num_attention_heads = 2;
/// let weights = VarMap::new();
/// let model = Llama::new(config, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
///
/// let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?;
/// let logits = model.forward(&ids, ForwardOptions::all())?;
/// assert_eq!(logits.dims(), [1, 3, 16]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Llama {
    model: LlamaModel,
    lm_head: Linear,
    config: LlamaConfig,
    rope: Rope,
}

/// All but the head.
#[derive(Clone, Debug)]
struct LlamaModel {
    embed_tokens: Embedding,
    layers: Blocks<Block>,
    norm: RmsNorm,
}

adaptable!(Llama: "llama" { model, lm_head });
adaptable!(LlamaModel { embed_tokens, layers, norm });

impl Llama {
    /// The `model_type` of Llama's configs.
    pub const MODEL_TYPE: &'static str = "llama";

    /// A model whose weights come from `vb`: read from a file and frozen, or made fresh and trainable when a `VarMap` backs it.
    ///
    /// # Errors
    /// When the config contradicts itself, or a weight is missing or misshapen.
    pub fn new(config: impl Into<LlamaConfig>, vb: VarBuilder<'_>) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        let stdev = config.initializer_range;
        let body = body(&vb, "model", "embed_tokens.weight");
        let embed_tokens = embedding(config.vocab_size, config.hidden_size, stdev, &body.pp("embed_tokens"))?;
        let layers = body.pp("layers");
        let model = LlamaModel {
            layers: (0..config.num_hidden_layers)
                .map(|i| Block::new(i, &config, &layers.pp(i)))
                .collect::<candle_core::Result<_>>()?,
            norm: rms_norm(config.hidden_size, config.rms_norm_eps, &body.pp("norm"))?,
            embed_tokens: embed_tokens.input_embedding(),
        };
        let lm_head = output_head(config.tie_word_embeddings, &model.embed_tokens, stdev, &vb)?;
        Ok(Self { model, lm_head, rope: Rope::new(&config), config })
    }

    /// Reads a Hugging Face folder, frozen. `dtype` `None` keeps that of the files.
    ///
    /// # Errors
    /// As [`load_model`](crate::load_model); also when the folder holds another kind of model.
    pub fn load(folder: impl AsRef<Path>, dtype: impl Into<Option<DType>>, device: &Device) -> Result<Self> {
        ModelFiles::open(folder)?.load(dtype, device)
    }

    /// The config.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

impl CausalLanguageModel for Llama {
    fn shape(&self) -> ModelShape {
        ModelShape {
            layers: self.config.num_hidden_layers,
            hidden_size: self.config.hidden_size,
            vocab_size: self.config.vocab_size,
            max_positions: self.config.max_position_embeddings,
        }
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    fn config_fields(&self) -> Map<String, Value> {
        self.config.to_fields()
    }

    fn hidden(&self, input_ids: &Tensor, options: ForwardOptions<'_>) -> candle_core::Result<Tensor> {
        options.run(|options| {
            let mut sequence = Sequence::new(input_ids, options, self.config.max_position_embeddings)?;
            let hidden = self.model.embed_tokens.forward(sequence.ids())?;
            let rotation = self.rope.tables(sequence.positions(), sequence.ids())?;
            let hidden = self.model.layers.forward(hidden, &rotation, &mut sequence)?;
            self.model.norm.forward(&sequence.finish(hidden)?)
        })
    }

    /// Of each token a block keeps, in elements of the model's dtype:
    ///
    /// - 4 `hidden_size`: two states of the residual stream and their norms;
    /// - twice the width of all queries, and as often that of all keys: queries, keys, values, and what attention makes of them;
    /// - 3 `intermediate_size`: gate, up, and what is made of them.
    ///
    /// Where no layer needs its input for a gradient (TinyLoRA, LoRA-XS) the norms and products among them are not kept.
    fn activations(&self, batch: usize, seq: usize) -> Option<Activations> {
        let config = &self.config;
        let (queries, keys) = (config.num_attention_heads, config.num_key_value_heads());
        let heads = 2 * (queries + keys) * config.head_dim();
        let block = 4 * config.hidden_size + heads + 3 * config.intermediate_size;
        let bytes = batch * seq * self.dtype().size_in_bytes();
        let (block, input) = (bytes * block, bytes * config.hidden_size);
        Some(Activations { blocks: config.num_hidden_layers, block, input })
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }
}

impl Architecture for Llama {
    const MODEL_TYPE: &'static str = Self::MODEL_TYPE;
    const BLOCKS: &'static str = "layers";

    type Config = LlamaConfig;

    fn configure(fields: &Fields) -> Result<LlamaConfig> {
        LlamaConfig::from_fields(fields)
    }

    fn block_count(config: &LlamaConfig) -> usize {
        config.num_hidden_layers
    }

    fn build(config: LlamaConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Self::new(config, vb)
    }

    fn is_redundant(config: &LlamaConfig, name: &str) -> bool {
        name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
    }
}
