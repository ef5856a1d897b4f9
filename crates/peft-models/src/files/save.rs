//! Writing complete model folders.

use super::CONFIG_FILE;
use crate::CausalLanguageModel;
use candle_core::{DType, Tensor};
use peft_core::checkpoint::{write_folder, write_tensors};
use peft_core::{Error, Result, Walk};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const WEIGHTS_FILE: &str = "model.safetensors";
const HEAD: &str = "lm_head.weight";

/// The files that make a folder usable beside config and weights.
const COMPANIONS: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// What belongs into a model folder besides config and weights: tokenizer, chat template, generation config.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    files: BTreeMap<String, Vec<u8>>,
}

impl Companions {
    /// No files.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those that a model folder has.
    ///
    /// # Errors
    /// When a file is there but cannot be read.
    pub fn of_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let mut companions = Self::none();
        for name in COMPANIONS {
            let path = folder.as_ref().join(name);
            if path.is_file() {
                let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
                companions.files.insert(name.to_owned(), bytes);
            }
        }
        Ok(companions)
    }

    /// Adds a file, or replaces it.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.into(), bytes.into());
        self
    }
}

pub(crate) fn save<M: CausalLanguageModel + ?Sized>(model: &M, dir: &Path, companions: &Companions) -> Result<()> {
    let (tensors, tied) = tensors(model, dir)?;
    let mut config = model.config_fields();
    config.insert("tie_word_embeddings".into(), tied.into());
    set_dtype(&mut config, model.dtype());
    config.sort_keys();
    let config = serde_json::to_string_pretty(&config)? + "\n";
    let weights = write_tensors(tensors.iter().map(|(name, tensor)| (name.clone(), tensor)))?;
    let mut files: Vec<(&str, &[u8])> =
        companions.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    files.extend([(WEIGHTS_FILE, weights.as_slice()), (CONFIG_FILE, config.as_bytes())]);
    write_folder(dir, &files)
}

/// All weights and biases by name, and whether the head was left out because it is the embedding's weight.
fn tensors<M: CausalLanguageModel + ?Sized>(model: &M, dir: &Path) -> Result<(BTreeMap<String, Tensor>, bool)> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    model.visit(&mut Walk::new(&mut |path, host| {
        if host.slots().is_live() {
            let message =
                format!("not saved: the adapters of `{path}` are active but not merged; merge or disable them first");
            return Err(Error::model(dir, message));
        }
        tensors.insert(format!("{path}.weight"), host.base().stored()?.clone());
        if let Some(bias) = host.bias() {
            tensors.insert(format!("{path}.bias"), bias.clone());
        }
        Ok(())
    }))?;
    let is_copy = |head: &Tensor| tensors.iter().any(|(name, tensor)| name != HEAD && tensor.id() == head.id());
    let tied = tensors.get(HEAD).is_some_and(is_copy);
    if tied {
        tensors.remove(HEAD);
    }
    Ok((tensors, tied))
}

/// Records the dtype under the name the config uses: `dtype`, or `torch_dtype` before transformers 5.
fn set_dtype(config: &mut Map<String, Value>, dtype: DType) {
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F64 => "float64",
        _ => "float32",
    };
    let key = if config.contains_key("torch_dtype") && !config.contains_key("dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.into(), name.into());
}
