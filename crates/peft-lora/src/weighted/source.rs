//! What can be combined: plain LoRA adapters.

use super::WeightedAdapter;
use super::factors::Term;
use crate::config::LoraConfig;
use candle_core::{DType, Tensor};
use peft_core::checkpoint::{DetachedAdapter, DetachedSite};
use peft_core::{AdapterMethod, BiasMode, Error, Result};
use std::collections::BTreeMap;

/// The end of the name of an embedding's base weight, which PEFT writes beside the adapter.
const BASE_WEIGHT: &str = ".base_layer.weight";

/// An adapter that can be combined.
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) adapter: &'a DetachedAdapter,
    pub(super) config: &'a LoraConfig,
    /// The largest rank of a module, by the config or by its factors. PiSSA and OLoRA have twice as many as the config says,
    /// because what they began as counts too.
    pub(super) rank: usize,
    /// Its parts at each module.
    pub(super) terms: Vec<Term<'a>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(weighted: &WeightedAdapter<'a>) -> Result<Self> {
        let &WeightedAdapter { name, adapter, weight } = weighted;
        let refuse = |why: String| Err(Error::Combination(format!("`{name}` {why}")));
        let Some(config) = adapter.config.method.downcast_ref::<LoraConfig>() else {
            return refuse(format!("is a {} adapter; convert it to LORA first", adapter.config.method.peft_type()));
        };
        if !weight.is_finite() {
            return refuse(format!("has the weight {weight}; it must be a finite number"));
        }
        if AdapterMethod::bias(config) != BiasMode::None {
            return refuse("trains biases; its `bias` must be \"none\"".to_owned());
        }
        let whole = config.targets.modules_to_save.iter().flatten().next().cloned();
        let whole = whole.or_else(|| adapter.carried.keys().find(|key| !key.ends_with(BASE_WEIGHT)).cloned());
        if let Some(whole) = whole {
            return refuse(format!("brings a module saved as a whole, `{whole}`"));
        }
        let term = |site: &'a DetachedSite| Term::new(name, weight, site).map_err(|e| e.at(&site.path));
        let terms = adapter.sites.iter().map(term).collect::<Result<Vec<_>>>()?;
        let ranks = terms.iter().map(Term::rank).collect::<Result<Vec<_>>>()?;
        let rank = config.rank_pattern.values().copied().chain(ranks).fold(config.r, usize::max);
        Ok(Self { name, adapter, config, rank, terms })
    }
}

/// The base weights of embeddings that come with the adapters, which have to be those of one model.
pub(super) fn base_weights(sources: &[Source<'_>]) -> Result<BTreeMap<String, Tensor>> {
    let mut found: BTreeMap<String, (&str, &Tensor)> = BTreeMap::new();
    for source in sources {
        for (key, tensor) in &source.adapter.carried {
            match found.get(key) {
                None => {
                    found.insert(key.clone(), (source.name, tensor));
                }
                Some((_, other)) if equal(other, tensor)? => {}
                Some((other, _)) => {
                    let name = source.name;
                    return Err(Error::Combination(format!(
                        "`{other}` and `{name}` bring different base weights `{key}`"
                    )));
                }
            }
        }
    }
    Ok(found.into_iter().map(|(key, (_, tensor))| (key, tensor.clone())).collect())
}

fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.shape() != b.shape() {
        return Ok(false);
    }
    let differing = a.to_dtype(DType::F64)?.ne(&b.to_dtype(DType::F64)?)?.to_dtype(DType::F32)?;
    Ok(differing.sum_all()?.to_scalar::<f32>()? == 0.0)
}
