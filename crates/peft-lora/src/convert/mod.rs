//! Any adapter as a LoRA checkpoint.

mod dense;
mod pattern_keys;
pub(crate) mod product;
mod rank;

pub use rank::Rank;

use crate::config::{LoraBias, LoraConfig};
use crate::layer::Names;
use candle_core::Tensor;
use peft_core::checkpoint::{DetachedAdapter, DetachedSite, write_adapter};
use peft_core::{
    AdapterConfig, BiasMode, Error, HostKind, Mode, ModuleNames, PEFT_VERSION, ParamKey, Result, TargetSpec,
    WeightLayout,
};
use rayon::prelude::*;
use serde::Serialize;
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
    /// What became of each module, in visit order.
    pub modules: Vec<ConvertedModule>,
}

/// What a conversion made of one module.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConvertedModule {
    /// The module's path in the base model.
    pub path: String,
    /// The rank of its LoRA.
    pub rank: usize,
    /// What its LoRA misses, in Frobenius norms: `|delta - delta_k| / |delta|`. It is 0 where nothing was left out, and for a delta
    /// of zero.
    pub error: f64,
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
/// This is [`to_lora_with`] and [`Rank::Exact`].
///
/// # Errors
/// When a layer's delta is not a product of two factors; the error names the module.
pub fn to_lora(adapter: &DetachedAdapter) -> Result<ConvertedLora> {
    to_lora_with(adapter, Rank::Exact)
}

/// The adapter as an ordinary LoRA of a rank that can be chosen: in each module the best approximation of that rank in the
/// Frobenius norm, exact where the layer's own factors are no larger.
///
/// A layer that is a product of two factors is cut down by its factors, whatever the size of the weight. Any other layer's
/// delta is computed and decomposed, which needs the weight it changes: of an adapter detached from its model
/// ([`PeftModel::detached`](peft_core::PeftModel::detached)) it is at hand.
///
/// The factors become A and B with `lora_alpha = r`, so that the scaling is 1; layers of another rank than most are named in
/// `rank_pattern` and `alpha_pattern`. Embeddings become `lora_embedding_A/B`. Modules saved as a whole and trained biases come
/// along.
///
/// # Errors
/// When the rank is 0 or larger than a weight allows, the threshold is not above 0 and at most 1, a layer changes the bias of its
/// module, or a layer is no product and the rank is [`Rank::Exact`] or its base weight is not at hand. Errors of a module name it.
pub fn to_lora_with(adapter: &DetachedAdapter, rank: Rank) -> Result<ConvertedLora> {
    rank.check()?;
    let method = adapter.config.method.peft_type();
    let convert = |site| Factors::of(site, method, rank).map_err(|e| e.at(&site.path));
    // Gathered before errors are looked at, so that the first module at fault is the one that is named.
    let converted: Vec<Result<Factors>> = adapter.sites.par_iter().map(convert).collect();

    let (mut tensors, mut modules) = (BTreeMap::new(), vec![]);
    for (site, factors) in adapter.sites.iter().zip(converted) {
        let factors = factors?;
        let (path, rank, error) = (site.path.clone(), factors.a.dim(0)?, factors.error);
        for (name, tensor) in factors.named(site.spec.kind)? {
            tensors.insert(ParamKey::site(&path, name).to_string(), tensor);
        }
        modules.push(ConvertedModule { path, rank, error });
    }
    tensors.extend(adapter.carried.clone());
    Ok(ConvertedLora { config: config(adapter, &modules), tensors, modules })
}

/// Two factors in place of a delta: `delta ~ b a`.
#[derive(Debug)]
pub(crate) struct Factors {
    /// `(rank, cols)`
    pub(crate) a: Tensor,
    /// `(rows, rank)`
    pub(crate) b: Tensor,
    /// `|delta - b a| / |delta|` in Frobenius norms.
    pub(crate) error: f64,
}

impl Factors {
    fn of(site: &DetachedSite, method: &'static str, rank: Rank) -> Result<Self> {
        rank.check_fits(site.spec.rows, site.spec.cols)?;
        if let Some(factors) = site.layer.lora_factors()? {
            return product::convert(&factors, rank);
        }
        if site.layer.delta_bias(site.bias.as_ref(), Mode::Infer)?.is_some() {
            return Err(Error::conversion(format!(
                "the {method} layer changes the module's bias as well as its weight, and a LoRA's factors change the weight alone"
            )));
        }
        if rank == Rank::Exact {
            return Err(Error::conversion(format!(
                "the delta of a {method} layer is not a product of two factors, so a LoRA can only approximate it: choose a rank, or \
                 a threshold for the share of the delta's energy to keep"
            )));
        }
        let base = site.base.canonical().map_err(|e| match e {
            Error::NoBaseWeight => Error::conversion(format!(
                "the delta of a {method} layer is computed from the weight that it changes: give the base model too"
            )),
            other => other,
        })?;
        dense::convert(&site.layer.delta_weight(&base)?, rank)
    }

    /// The factors in the shapes and under the names that LoRA's checkpoints have.
    fn named(self, kind: HostKind) -> Result<[(&'static str, Tensor); 2]> {
        let (names, a, b) = match kind {
            HostKind::Embedding => (Names::EMBEDDING, self.b.t()?, self.a.t()?),
            _ => (Names::LINEAR, self.a, self.b),
        };
        Ok([(names.a, a.contiguous()?), (names.b, b.contiguous()?)])
    }
}

/// The config of a LoRA with these modules.
fn config(adapter: &DetachedAdapter, modules: &[ConvertedModule]) -> AdapterConfig {
    let r = most_common(modules.iter().map(|m| m.rank));
    let paths = || modules.iter().map(|m| m.path.as_str());
    let odd: Vec<(String, usize)> =
        modules.iter().filter(|m| m.rank != r).map(|m| (pattern_keys::key(&m.path, paths()), m.rank)).collect();
    let mut lora = LoraConfig::with_rank(r, targets(adapter));
    lora.rank_pattern = odd.iter().cloned().collect();
    lora.alpha_pattern = odd.into_iter().map(|(key, rank)| (key, rank as f64)).collect();
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
    config
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
