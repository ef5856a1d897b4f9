//! Which files of a repository are needed.

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ADAPTER_CONFIG: &str = "adapter_config.json";
const MODEL_CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
/// The first that there is.
const ADAPTER_WEIGHTS: [&str; 3] = ["adapter_model.safetensors", "adapter_model.bin", "adapter_compact.safetensors"];
const MODEL_WEIGHTS: [&str; 2] = ["model.safetensors", INDEX];
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// What text goes through on its way into a model and out of it.
const TEXT: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// What other programs want beside it in a model's folder.
const COMPANIONS: [&str; 5] = ["added_tokens.json", "merges.txt", "tokenizer.model", "vocab.json", "vocab.txt"];

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// An adapter: its config and tensors.
    Adapter,
    /// Only the config of an adapter.
    AdapterConfig,
    /// Only the config of a model.
    ModelConfig,
    /// A model to run: config, weights, tokenizer, chat template.
    Model,
    /// A model to make another folder of: all that belongs to it.
    WholeModel,
    /// An adapter if it is one, else a model to run.
    Any,
}

/// The names of files that a part consists of.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) needed: Vec<String>,
    /// Those that not every repository has, and this one does not.
    pub(crate) absent: Vec<String>,
}

impl Part {
    /// What of it there is, told from which names there are. `names` are some of them, for messages.
    pub(crate) fn of(self, repo: &str, has: &dyn Fn(&str) -> bool, names: &[&str]) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        if self == Self::Any {
            let part = if has(ADAPTER_CONFIG) { Self::Adapter } else { Self::Model };
            return part.of(repo, has, names);
        }
        let (config, weights, optional): (_, &[&str], Vec<&str>) = match self {
            Self::Adapter => (ADAPTER_CONFIG, &ADAPTER_WEIGHTS, vec![]),
            Self::AdapterConfig => (ADAPTER_CONFIG, &[], vec![]),
            Self::ModelConfig => (MODEL_CONFIG, &[], vec![]),
            Self::Model | Self::Any => (MODEL_CONFIG, &MODEL_WEIGHTS, TEXT.to_vec()),
            Self::WholeModel => (MODEL_CONFIG, &MODEL_WEIGHTS, [&TEXT[..], &COMPANIONS[..]].concat()),
        };
        let unfit = |reason: String| Error::Unfit { repo: repo.to_owned(), reason };
        if !has(config) {
            let other = match self {
                Self::Adapter | Self::AdapterConfig if has(MODEL_CONFIG) => "this is a model, not an adapter: ",
                Self::Model | Self::WholeModel | Self::ModelConfig if has(ADAPTER_CONFIG) => {
                    "this is an adapter, not a model: "
                }
                _ => "",
            };
            return Err(unfit(format!("{other}it has no {config}{}", listed(names))));
        }
        wanted.needed.push(config.to_owned());
        if !weights.is_empty() {
            let Some(name) = weights.iter().find(|name| has(name)) else {
                let pickled = self != Self::Adapter && PICKLES.iter().any(|name| has(name));
                let hint = if pickled {
                    "; its weights are pickles, which are not read: look for a revision with safetensors, such as refs/pr/N, \
                     or save the model again"
                        .to_owned()
                } else {
                    listed(names)
                };
                return Err(unfit(format!("it has neither {}{hint}", weights.join(" nor "))));
            };
            wanted.needed.push((*name).to_owned());
        }
        for name in optional {
            let list = if has(name) { &mut wanted.needed } else { &mut wanted.absent };
            list.push(name.to_owned());
        }
        Ok(wanted)
    }
}

fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    match names {
        [] => String::new(),
        names => format!("; it has {}{more}", names[..names.len().min(SHOWN)].join(", ")),
    }
}

/// Whether a file lists shards.
pub(crate) fn is_index(name: &str) -> bool {
    name.rsplit('/').next() == Some(INDEX)
}

/// The shards that an index lists; all of them lie beside it.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let distrusted = |reason: String| Error::Distrusted { what: index.display().to_string(), reason };
    let text = fs::read(index).map_err(|e| Error::io("read", index, &e))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| distrusted(e.to_string()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let outside = shards.iter().find(|name| {
        name.contains(['/', '\\']) || !name.ends_with(".safetensors") || crate::source::check_file_name(name).is_err()
    });
    match outside {
        Some(name) => {
            Err(distrusted(format!("`{}` is not a safetensors file in the same folder", name.escape_default())))
        }
        None => Ok(shards),
    }
}
