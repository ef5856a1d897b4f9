//! What all causal language models share, and one of any kind.

use crate::files::{self, Companions, ModelFiles};
use crate::{Activations, ForwardOptions, Gpt2, KvCache, Llama};
use candle_core::{DType, Device, Module, Tensor};
use peft_core::nn::Linear;
use peft_core::{Adaptable, Host, Result, Walk, WalkMut};
use serde_json::{Map, Value};
use std::fmt::Debug;
use std::path::Path;

/// The sizes of a model that its callers need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelShape {
    /// Number of blocks.
    pub layers: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Number of token ids; logits are this long.
    pub vocab_size: usize,
    /// Number of positions (`max_position_embeddings`); no sequence may be longer.
    pub max_positions: usize,
}

/// A causal language model built from hosts.
///
/// Weights that are variables (a `VarMap`'s) and the parameters of active adapters in training mode get gradients; all else is
/// frozen, gets none and costs none. There is no dropout in the base model.
pub trait CausalLanguageModel: Adaptable + Debug + Send + Sync {
    /// The sizes of the model.
    fn shape(&self) -> ModelShape;

    /// The ids that end a text; empty where the config names none.
    fn eos_token_ids(&self) -> &[u32];

    /// The fields of the `config.json` that describes this model.
    fn config_fields(&self) -> Map<String, Value>;

    /// Final hidden states, after the last norm, `(batch, n, hidden_size)` in the model's dtype.
    ///
    /// `input_ids` is `(batch, seq)` of any integer dtype; `n` is the number of positions that `options` asks for, `seq` unless set.
    /// A loss over a large vocabulary can run [`CausalLanguageModel::head`] on pieces of the result.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, the sequence is longer than the model's positions, or options do not fit the input.
    fn hidden(&self, input_ids: &Tensor, options: ForwardOptions<'_>) -> candle_core::Result<Tensor>;

    /// The output head, from hidden states to logits.
    fn head(&self) -> &Linear;

    /// Logits `(batch, n, vocab_size)` in the model's dtype: [`CausalLanguageModel::hidden`], then the head.
    ///
    /// # Errors
    /// As [`CausalLanguageModel::hidden`].
    fn forward(&self, input_ids: &Tensor, options: ForwardOptions<'_>) -> candle_core::Result<Tensor> {
        options.run(|options| {
            let inference = options.cache.is_some();
            let logits = self.head().forward(&self.hidden(input_ids, options)?)?;
            Ok(if inference { logits.detach() } else { logits })
        })
    }

    /// The bytes that a training step over `(batch, seq)` tokens keeps of each block for its backward, or `None` when the model
    /// does not say; its blocks are all kept then.
    ///
    /// An estimate from the shapes, of a model in training from the first block on: the results of operators that a later
    /// backward reads or that candle's graph holds. What adapters keep comes on top.
    fn activations(&self, _batch: usize, _seq: usize) -> Option<Activations> {
        None
    }

    /// An empty cache for this model; see [`ForwardOptions::with_cache`].
    fn new_cache(&self) -> KvCache {
        KvCache::new(self.shape().layers)
    }

    /// The dtype of weights, hidden states and logits.
    fn dtype(&self) -> DType {
        self.head().spec().dtype
    }

    /// Where the weights live; inputs must be there too.
    fn device(&self) -> Device {
        self.head().spec().device
    }

    /// Writes a complete model folder: `config.json`, `model.safetensors`, and `companions` (tokenizer files and the like).
    ///
    /// A head that shares the embedding's weight is left out and the config says `tie_word_embeddings`; one that does not is
    /// written. Fields of the original `config.json` that this crate does not know are kept. Older files are replaced in one step
    /// each, after all new ones have reached the disk.
    ///
    /// # Errors
    /// When adapters are active but not merged, or a file cannot be written.
    fn save(&self, dir: &Path, companions: &Companions) -> Result<()> {
        files::save(self, dir, companions)
    }
}

/// A causal language model of any supported kind.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CausalLm {
    /// Llama, and models that share its architecture and `model_type`.
    Llama(Llama),
    /// GPT-2.
    Gpt2(Gpt2),
}

/// Reads a Hugging Face model folder of any supported kind. `dtype` `None` keeps that of the files.
///
/// # Errors
/// When the folder or a file is missing or broken, the `model_type` is not supported, or config and weights contradict each
/// other: a tensor is missing, misshapen, or left over.
pub fn load_model(folder: impl AsRef<Path>, dtype: impl Into<Option<DType>>, device: &Device) -> Result<CausalLm> {
    CausalLm::from_files(&ModelFiles::open(folder)?, dtype, device)
}

/// Evaluates an expression on whichever model it is.
macro_rules! on_model {
    ($lm:expr, $model:ident => $apply:expr) => {
        match $lm {
            CausalLm::Llama($model) => $apply,
            CausalLm::Gpt2($model) => $apply,
        }
    };
}

impl CausalLm {
    /// As [`load_model`], from files that are open already.
    ///
    /// # Errors
    /// As [`load_model`].
    pub fn from_files(files: &ModelFiles, dtype: impl Into<Option<DType>>, device: &Device) -> Result<Self> {
        let dtype = dtype.into();
        match files.model_type()? {
            Llama::MODEL_TYPE => Ok(Self::Llama(files.load(dtype, device)?)),
            Gpt2::MODEL_TYPE => Ok(Self::Gpt2(files.load(dtype, device)?)),
            other => Err(files.unsupported(other, &[Gpt2::MODEL_TYPE, Llama::MODEL_TYPE])),
        }
    }
}

impl Adaptable for CausalLm {
    fn visit(&self, walk: &mut Walk<'_>) -> Result<()> {
        on_model!(self, model => model.visit(walk))
    }

    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> Result<()> {
        on_model!(self, model => model.visit_mut(walk))
    }

    fn model_type(&self) -> Option<&str> {
        on_model!(self, model => model.model_type())
    }
}

impl CausalLanguageModel for CausalLm {
    fn shape(&self) -> ModelShape {
        on_model!(self, model => model.shape())
    }

    fn eos_token_ids(&self) -> &[u32] {
        on_model!(self, model => model.eos_token_ids())
    }

    fn config_fields(&self) -> Map<String, Value> {
        on_model!(self, model => model.config_fields())
    }

    fn hidden(&self, input_ids: &Tensor, options: ForwardOptions<'_>) -> candle_core::Result<Tensor> {
        on_model!(self, model => model.hidden(input_ids, options))
    }

    fn activations(&self, batch: usize, seq: usize) -> Option<Activations> {
        on_model!(self, model => model.activations(batch, seq))
    }

    fn head(&self) -> &Linear {
        on_model!(self, model => model.head())
    }
}

impl From<Llama> for CausalLm {
    fn from(model: Llama) -> Self {
        Self::Llama(model)
    }
}

impl From<Gpt2> for CausalLm {
    fn from(model: Gpt2) -> Self {
        Self::Gpt2(model)
    }
}
