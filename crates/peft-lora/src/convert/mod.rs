//! Any adapter that is a product of two factors, as a LoRA checkpoint.

use crate::config::{LoraBias, LoraConfig};
use crate::layer::Names;
use candle_core::{DType, Tensor};
use peft_core::checkpoint::{DetachedAdapter, DetachedSite, write_adapter};
use peft_core::{
    AdapterConfig, BiasMode, Error, HostKind, ModuleNames, PEFT_VERSION, Result, TargetSpec, WeightLayout,
};
use std::collections::BTreeMap;
use std::path::Path;

/// A LoRA checkpoint in memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConvertedLora {
    /// The config.
    pub config: AdapterConfig,
    /// The tensors by their names in the file.
    pub tensors: BTreeMap<String, Tensor>,
}

impl ConvertedLora {
    /// Writes the checkpoint as PEFT lays it out.
    ///
    /// # Errors
    /// When a file cannot be written; older files are whole then.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        write_adapter(dir.as_ref(), &self.config, self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)))
    }
}

/// The same adapter as an ordinary LoRA: exact, without an SVD and without the base model.
///
/// Each layer's factors become A and B with `lora_alpha = r`, so that the scaling is 1; layers of another rank than most are
/// named in `rank_pattern` and `alpha_pattern`. Embeddings become `lora_embedding_A/B`. Modules saved as a whole and trained
/// biases come along.
///
/// # Errors
/// When a layer's delta is not a product of two factors.
pub fn to_lora(adapter: &DetachedAdapter) -> Result<ConvertedLora> {
    let mut tensors = BTreeMap::new();
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for site in &adapter.sites {
        let (names, a, b) = factors(site, adapter.config.method.peft_type()).map_err(|e| e.at(&site.path))?;
        ranks.insert(site.path.clone(), if names == Names::EMBEDDING { b.dim(1)? } else { a.dim(0)? });
        for (name, tensor) in [(names.a, a), (names.b, b)] {
            tensors.insert(peft_core::ParamKey::site(&site.path, name).to_string(), tensor);
        }
    }
    tensors.extend(adapter.carried.clone());

    let r = most_common(ranks.values().copied());
    let mut lora = LoraConfig::with_rank(r, targets(adapter));
    lora.rank_pattern = ranks.into_iter().filter(|(_, rank)| *rank != r).collect();
    lora.alpha_pattern = lora.rank_pattern.iter().map(|(path, rank)| (path.clone(), *rank as f64)).collect();
    lora.fan_in_fan_out = adapter.sites.iter().any(|s| s.spec.layout == WeightLayout::InOut);
    lora.bias = match adapter.config.method.bias() {
        BiasMode::All => LoraBias::All,
        BiasMode::Targets => LoraBias::LoraOnly,
        _ => LoraBias::None,
    };
    let mut config = AdapterConfig::from(lora);
    config.meta = adapter.config.meta.clone();
    config.meta.unknown.clear();
    config.meta.peft_version.get_or_insert_with(|| PEFT_VERSION.to_owned());
    config.meta.inference_mode = true;
    Ok(ConvertedLora { config, tensors })
}

/// The factors of one site in the shapes that LoRA's checkpoints have.
fn factors(site: &DetachedSite, method: &'static str) -> Result<(Names, Tensor, Tensor)> {
    let factors = site.layer.lora_factors()?;
    let factors = factors
        .ok_or_else(|| Error::config(format!("the delta of a {method} layer is not a product of two factors")))?;
    let wide = if factors.a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let a = factors.a.to_dtype(wide)?;
    let b = factors.b.to_dtype(wide)?;
    let b = if factors.scale == 1.0 { b } else { (b * factors.scale)? };
    Ok(match site.spec.kind {
        HostKind::Embedding => (Names::EMBEDDING, b.t()?.contiguous()?, a.t()?.contiguous()?),
        _ => (Names::LINEAR, a.contiguous()?, b.contiguous()?),
    })
}

/// The source's targets where LoRA reads them the same way; full names where the source had a regular expression.
fn targets(adapter: &DetachedAdapter) -> TargetSpec {
    let source = adapter.config.method.targets();
    match &source.target_modules {
        Some(ModuleNames::List(_)) => source.clone(),
        _ => TargetSpec {
            target_modules: Some(ModuleNames::list(adapter.sites.iter().map(|s| s.path.as_str()))),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            modules_to_save: source.modules_to_save.clone(),
        },
    }
}

/// The value that occurs most often; the larger one on a tie.
fn most_common(values: impl Iterator<Item = usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(value, count)| (*count, *value)).map_or(1, |(value, _)| value)
}
