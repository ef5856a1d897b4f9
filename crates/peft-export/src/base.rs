//! What an export must know of the base model.

use crate::Architecture;
use peft_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

const CONFIG_FILE: &str = "config.json";

/// The shape of a base model, as far as its `config.json` decides how an adapter is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseModel {
    /// What kind of model it is.
    pub architecture: Architecture,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Number of heads of keys and values.
    pub kv_heads: usize,
    /// Whether the output head is the embedding's weight.
    pub tied: bool,
}

impl BaseModel {
    /// Reads the `config.json` of a model folder; weights are not looked at.
    ///
    /// # Errors
    /// When folder or file is missing, a field is, or the architecture is not supported.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG_FILE);
        let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound if !folder.exists() => Error::model(folder, "no such folder"),
            ErrorKind::NotFound => Error::model(folder, format!("not a model folder: it has no {CONFIG_FILE}")),
            _ => Error::io("read", &path, e),
        })?;
        Self::from_json(&text).map_err(|message| Error::model(path, message))
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| format!("not a JSON object: {e}"))?;
        let model_type: String = require(&fields, &["model_type"])?;
        let architecture = Architecture::ALL.into_iter().find(|a| a.model_type() == model_type).ok_or_else(|| {
            let supported = Architecture::ALL.map(Architecture::model_type).join(", ");
            format!("adapters of `model_type` `{model_type}` cannot be exported; supported: {supported}")
        })?;
        let layers = require(&fields, &["num_hidden_layers", "n_layer"])?;
        let heads = require(&fields, &["num_attention_heads", "n_head"])?;
        let kv_heads = optional(&fields, &["num_key_value_heads"])?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 {
            return Err("the number of attention heads is 0, it must be at least 1".into());
        }
        let tied = optional(&fields, &["tie_word_embeddings"])?.unwrap_or(architecture.ties_by_default());
        Ok(Self { architecture, layers, heads, kv_heads, tied })
    }
}

/// A field that has one of these names; `null` counts as absent.
fn optional<T: DeserializeOwned>(fields: &Map<String, Value>, names: &[&str]) -> Result<Option<T>, String> {
    let found = names.iter().find_map(|name| Some((name, fields.get(*name).filter(|value| !value.is_null())?)));
    let Some((name, value)) = found else { return Ok(None) };
    T::deserialize(value).map(Some).map_err(|e| format!("`{name}` is {value}: {e}"))
}

fn require<T: DeserializeOwned>(fields: &Map<String, Value>, names: &[&str]) -> Result<T, String> {
    optional(fields, names)?.ok_or_else(|| format!("`{}` is missing", names.join("` or `")))
}
