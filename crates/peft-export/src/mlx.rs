//! The adapter folders of MLX-LM: `adapters.safetensors` beside `adapter_config.json`.
//!
//! An adapted linear layer computes `y + scale * (x lora_a) lora_b`, with `lora_a` `(in, rank)` and `lora_b` `(rank, out)`: both
//! are transposed against PEFT's. An adapted embedding adds `scale * lora_a[ids] lora_b`. Rank and scale are those of the whole
//! adapter. The layers to adapt are named by `keys`: paths below a block, which apply to the last `num_layers` blocks, and full
//! paths outside of them. This is how `load_adapters` of mlx-lm 0.32 reads them.

use crate::architecture::{Architecture, HEAD, Place};
use crate::factors::{Factors, Source, not_exportable};
use crate::{BaseModel, factors};
use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::{DetachedAdapter, PICKLE_FILE, WEIGHTS_FILE, write_folder, write_tensors};
use peft_core::{Error, Result};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const FORMAT: &str = "an MLX adapter";
const TENSORS_FILE: &str = "adapters.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";

/// An adapter in MLX-LM's format, in memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MlxAdapter {
    /// The rank of every pair of factors; those of smaller rank are padded with zeros.
    pub rank: usize,
    /// How many blocks are adapted, counted from the last one.
    pub num_layers: usize,
    /// The adapted modules: paths below a block, or full paths outside of the blocks.
    pub keys: BTreeSet<String>,
    /// The factors in f32, by the module's path in MLX-LM and `lora_a` or `lora_b`. The adapter's scale is in them.
    pub tensors: BTreeMap<String, Tensor>,
    /// Modules whose base weight the adapter's file holds. It is not exported: the server's own must be the same.
    pub assumed_base_weights: Vec<String>,
}

/// The same adapter for MLX-LM.
///
/// The scale is multiplied into the factors, with one rounding to f32. Where a block lacks a module that others adapt, its
/// factors are zero.
///
/// # Errors
/// [`Error::NotExportable`] naming the first module that the format cannot hold as it is.
pub fn to_mlx(adapter: &DetachedAdapter, base: &BaseModel) -> Result<MlxAdapter> {
    let Source { factors, assumed } = Source::of(adapter, base, FORMAT)?;
    let rank = factors::largest_rank(&factors);
    let (mut keys, mut tensors) = (BTreeSet::new(), BTreeMap::new());
    let mut blocks: BTreeMap<&str, BTreeMap<usize, &Factors>> = BTreeMap::new();
    for module in &factors {
        if let Place::Block { index, module: kind } = module.place {
            blocks.entry(kind.name).or_default().insert(index, module);
        } else {
            let path = end_path(module, base)?;
            add(&mut tensors, &path, pair(module, rank)?);
            keys.insert(path.to_owned());
        }
    }
    let first = blocks.values().filter_map(|adapted| adapted.keys().next().copied()).min().unwrap_or(base.layers);
    for (name, adapted) in blocks {
        keys.insert(name.to_owned());
        for index in first..base.layers {
            let path = block_path(base.architecture, index, name);
            match (adapted.get(&index), adapted.values().next()) {
                (Some(module), _) => add(&mut tensors, &path, pair(module, rank)?),
                (None, Some(other)) => add(&mut tensors, &path, zero_pair(other, rank)?),
                (None, None) => {}
            }
        }
    }
    Ok(MlxAdapter { rank, num_layers: base.layers - first, keys, tensors, assumed_base_weights: assumed })
}

impl MlxAdapter {
    /// Writes the adapter folder.
    ///
    /// # Errors
    /// When the folder holds an adapter of PEFT, whose config has the same name, or a file cannot be written; what was there
    /// before is whole then.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        if let Some(name) = [WEIGHTS_FILE, PICKLE_FILE].iter().find(|name| dir.join(name).exists()) {
            return Err(Error::model(dir, format!("not overwritten: it holds a PEFT adapter ({name})")));
        }
        let tensors = write_tensors(self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)))?;
        let config = json!({
            "fine_tune_type": "lora",
            "num_layers": self.num_layers,
            "lora_parameters": { "rank": self.rank, "scale": 1.0, "dropout": 0.0, "keys": self.keys },
        });
        let config = serde_json::to_string_pretty(&config)? + "\n";
        write_folder(dir, &[(TENSORS_FILE, &tensors), (CONFIG_FILE, config.as_bytes())])
    }
}

fn add(tensors: &mut BTreeMap<String, Tensor>, path: &str, (a, b): (Tensor, Tensor)) {
    tensors.insert(format!("{path}.lora_a"), a);
    tensors.insert(format!("{path}.lora_b"), b);
}

/// `lora_a` and `lora_b` of one module, padded to the adapter's rank.
fn pair(module: &Factors, rank: usize) -> Result<(Tensor, Tensor)> {
    let (a, b) = (module.a()?, module.scaled_b(module.scale)?);
    let missing = rank - module.rank();
    let (a, b) = (a.pad_with_zeros(0, 0, missing)?, b.pad_with_zeros(1, 0, missing)?);
    Ok(match module.place {
        Place::Tokens | Place::Positions => (b, a),
        Place::Block { .. } | Place::Head => (a.t()?.contiguous()?, b.t()?.contiguous()?),
    })
}

/// Factors that change nothing, for a linear layer of the same shape.
fn zero_pair(module: &Factors, rank: usize) -> Result<(Tensor, Tensor)> {
    let zeros = |rows, cols| Tensor::zeros((rows, cols), DType::F32, &Device::Cpu);
    Ok((zeros(module.a.dim(1)?, rank)?, zeros(rank, module.b.dim(0)?)?))
}

fn block_path(architecture: Architecture, index: usize, name: &str) -> String {
    let list = if architecture == Architecture::Gpt2 { "h" } else { "layers" };
    format!("model.{list}.{index}.{name}")
}

/// The path of a module outside of the blocks, if MLX-LM has it as a layer of its own.
fn end_path(module: &Factors, base: &BaseModel) -> Result<String> {
    // MLX-LM ties these whatever their config says.
    let always_tied = matches!(base.architecture, Architecture::Gemma | Architecture::Gemma2 | Architecture::Gpt2);
    let tied = base.tied || always_tied;
    let refuse = |reason| Err(not_exportable(FORMAT, &module.path, reason));
    match module.place {
        Place::Tokens if tied => refuse("its weight is the output head's too, and MLX-LM would change both"),
        Place::Head if tied => refuse("its weight is the embedding's, and MLX-LM has no layer for it"),
        Place::Positions => Ok("model.wpe".to_owned()),
        Place::Head => Ok(HEAD.to_owned()),
        _ => Ok("model.embed_tokens".to_owned()),
    }
}
