//! GPT-2 (Radford et al. 2019).

mod attention;
mod block;
mod config;
mod mlp;

pub use config::Gpt2Config;

use crate::blocks::Blocks;
use crate::fields::Fields;
use crate::files::{Architecture, ModelFiles};
use crate::layers::{body, embedding, layer_norm, output_head, residual};
use crate::sequence::Sequence;
use crate::{Activations, CausalLanguageModel, ForwardOptions, ModelShape};
use block::Block;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use peft_core::nn::{Embedding, LayerNorm, Linear};
use peft_core::{Result, adaptable};
use serde_json::{Map, Value};
use std::path::Path;

/// A GPT-2 built from hosts, with gradients everywhere. Its Conv1D layers are linear hosts with transposed weights.
#[derive(Clone, Debug)]
pub struct Gpt2 {
    transformer: Transformer,
    lm_head: Linear,
    config: Gpt2Config,
}

/// All but the head.
#[derive(Clone, Debug)]
struct Transformer {
    wte: Embedding,
    wpe: Embedding,
    h: Blocks<Block>,
    ln_f: LayerNorm,
}

adaptable!(Gpt2: "gpt2" { transformer, lm_head });
adaptable!(Transformer { wte, wpe, h, ln_f });

impl Gpt2 {
    /// The `model_type` of GPT-2's configs.
    pub const MODEL_TYPE: &'static str = "gpt2";

    /// A model whose weights come from `vb`: read from a file and frozen, or made fresh and trainable when a `VarMap` backs it.
    ///
    /// # Errors
    /// When the config contradicts itself, or a weight is missing or misshapen.
    pub fn new(config: Gpt2Config, vb: VarBuilder<'_>) -> Result<Self> {
        config.validate()?;
        let (width, stdev) = (config.n_embd, config.initializer_range);
        let body = body(&vb, "transformer", "wte.weight");
        let blocks = body.pp("h");
        let transformer = Transformer {
            wte: embedding(config.vocab_size, width, stdev, &body.pp("wte"))?.input_embedding(),
            wpe: embedding(config.n_positions, width, stdev, &body.pp("wpe"))?,
            h: (0..config.n_layer)
                .map(|i| Block::new(i, &config, &blocks.pp(i)))
                .collect::<candle_core::Result<_>>()?,
            ln_f: layer_norm(width, config.layer_norm_epsilon, &body.pp("ln_f"))?,
        };
        let lm_head = output_head(config.tie_word_embeddings, &transformer.wte, stdev, &vb)?;
        Ok(Self { transformer, lm_head, config })
    }

    /// Reads a Hugging Face folder, frozen. `dtype` `None` keeps that of the files.
    ///
    /// # Errors
    /// As [`load_model`](crate::load_model); also when the folder holds another kind of model.
    pub fn load(folder: impl AsRef<Path>, dtype: impl Into<Option<DType>>, device: &Device) -> Result<Self> {
        ModelFiles::open(folder)?.load(dtype, device)
    }

    /// The config.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }
}

impl CausalLanguageModel for Gpt2 {
    fn shape(&self) -> ModelShape {
        ModelShape {
            layers: self.config.n_layer,
            hidden_size: self.config.n_embd,
            vocab_size: self.config.vocab_size,
            max_positions: self.config.n_positions,
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
            let mut sequence = Sequence::new(input_ids, options, self.config.n_positions)?;
            let tokens = self.transformer.wte.forward(sequence.ids())?;
            let positions = self.transformer.wpe.forward(&sequence.position_ids()?)?;
            let shared = tokens.dims() != positions.dims();
            let hidden = if shared { tokens.broadcast_add(&positions)? } else { residual(&tokens, &positions)? };
            let hidden = self.transformer.h.forward(hidden, &(), &mut sequence)?;
            self.transformer.ln_f.forward(&sequence.finish(hidden)?)
        })
    }

    /// Of each token a block keeps, in elements of the model's dtype:
    ///
    /// - 4 `n_embd`: two states of the residual stream and their norms;
    /// - 4 `n_embd`: queries, keys and values, and what attention makes of them;
    /// - 2 `n_inner`: before and after the activation.
    fn activations(&self, batch: usize, seq: usize) -> Option<Activations> {
        let (width, inner) = (self.config.n_embd, self.config.n_inner());
        let bytes = batch * seq * self.dtype().size_in_bytes();
        let (block, input) = (bytes * (8 * width + 2 * inner), bytes * width);
        Some(Activations { blocks: self.config.n_layer, block, input })
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }
}

impl Architecture for Gpt2 {
    const MODEL_TYPE: &'static str = Self::MODEL_TYPE;
    const BLOCKS: &'static str = "h";

    type Config = Gpt2Config;

    fn configure(fields: &Fields) -> Result<Gpt2Config> {
        Gpt2Config::from_fields(fields)
    }

    fn block_count(config: &Gpt2Config) -> usize {
        config.n_layer
    }

    fn build(config: Gpt2Config, vb: VarBuilder<'_>) -> Result<Self> {
        Self::new(config, vb)
    }

    /// Old checkpoints hold the causal mask of each block.
    fn is_redundant(config: &Gpt2Config, name: &str) -> bool {
        let is_mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
        is_mask || (config.tie_word_embeddings && name == "lm_head.weight")
    }
}
