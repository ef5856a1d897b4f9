//! Several LoRA adapters as one: PEFT's `add_weighted_adapter`.

mod config;
mod factors;
mod source;

use crate::convert::{ConvertedLora, ConvertedModule, Factors};
use factors::Term;
use indexmap::IndexMap;
use peft_core::checkpoint::DetachedAdapter;
use peft_core::{Adaptable, Adapter, Error, ParamKey, PeftModel, Result};
use rayon::prelude::*;
use source::Source;

/// How the factors of several adapters become those of one.
///
/// `w` is an adapter's weight, `s` the scaling of its module (`lora_alpha / r`, or what rsLoRA and the patterns make of it).
/// Weights may be negative. The combined adapter has a scaling of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Combination {
    /// `A = sum(sign(w s) sqrt|w s| A_i)`, `B = sum(sqrt|w s| B_i)`, for adapters of equal ranks.
    ///
    /// Cheap and rough: the product of the sums has the terms `B_i A_j` too, so it is not the sum of the deltas.
    Linear,
    /// `A_i`, times `w s`, and `B_i` side by side: exactly the sum of the deltas. The rank is the sum of the ranks.
    Cat,
    /// The nearest to the sum of the deltas that a rank allows, by singular value decomposition: `A = V^T`, `B = U S`.
    Svd {
        /// The rank; the largest of the adapters when `None`.
        rank: Option<usize>,
        /// Limits the entries of A and B to this quantile of them all, from 0 to 1 (PEFT's `svd_clamp`). Quantiles depend on the
        /// signs of the singular vectors, which are free: here the entry of largest magnitude in each column of B is positive.
        clamp: Option<f64>,
    },
}

/// One adapter of a combination.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct WeightedAdapter<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// The adapter.
    pub adapter: &'a DetachedAdapter,
    /// What its delta is multiplied with; may be negative.
    pub weight: f64,
}

impl<'a> WeightedAdapter<'a> {
    /// An adapter with its weight.
    pub fn new(name: &'a str, adapter: &'a DetachedAdapter, weight: f64) -> Self {
        Self { name, adapter, weight }
    }
}

/// Combines LoRA adapters of one base model into a new LoRA checkpoint, without the base model.
///
/// At a module that only some of them adapt, those are combined. Every module gets the same rank, which is `lora_alpha` too; where
/// less is needed, zeros fill the rest. The other fields of the config are those of the first adapter. The errors of
/// [`ConvertedLora::modules`] say how far each module is from the sum of the deltas.
///
/// PEFT 0.21.2 computes the same, except that its result is wrong or cannot be loaded when the first adapter uses rsLoRA (it scales
/// by `sqrt(r)` again), when ranks of a pattern are summed, or when the rank of an SVD is beyond a side of a weight; and it
/// combines a single adapter linearly whatever is asked for.
///
/// # Errors
/// When there is no adapter or a weight is not finite; when one is not a LoRA, has layers that are not a product of two factors
/// (DoRA, a trained bias of the factors), or brings biases or modules saved as a whole; when adapters disagree about a module's
/// shape or bring different base weights of an embedding; when ranks differ under [`Combination::Linear`]; when the rank or the
/// quantile of [`Combination::Svd`] is out of range.
pub fn combine(adapters: &[WeightedAdapter<'_>], combination: Combination) -> Result<ConvertedLora> {
    let sources = adapters.iter().map(Source::new).collect::<Result<Vec<_>>>()?;
    let Some(first) = sources.first() else {
        return Err(Error::Combination("there are none; name at least one".to_owned()));
    };
    let rank = combination.rank(sources.iter().map(|source| source.rank).collect())?;
    let mut modules: IndexMap<&str, Vec<&Term<'_>>> = IndexMap::new();
    for term in sources.iter().flat_map(|source| &source.terms) {
        modules.entry(term.path).or_default().push(term);
    }
    // Gathered before errors are looked at, so that the first module at fault is the one that is named.
    let work: Vec<(&str, &[&Term<'_>])> = modules.iter().map(|(path, terms)| (*path, terms.as_slice())).collect();
    let combine = |(path, terms): &(&str, &[&Term<'_>])| combination.of(terms, rank).map_err(|e| e.at(*path));
    let combined: Vec<Result<Factors>> = work.par_iter().map(combine).collect();

    let (mut tensors, mut made) = (source::base_weights(&sources)?, vec![]);
    for ((path, terms), factors) in work.into_iter().zip(combined) {
        let (Factors { a, b, error }, names) = (factors?, terms[0].names);
        tensors.insert(ParamKey::site(path, names.a).to_string(), a);
        tensors.insert(ParamKey::site(path, names.b).to_string(), b);
        made.push(ConvertedModule { path: path.to_owned(), rank, error });
    }
    let config = config::combined(first, &sources, rank, modules.keys().copied());
    Ok(ConvertedLora { config, tensors, modules: made })
}

/// Combines attached LoRA adapters into a new one under a name of its own.
///
/// As with [`PeftModel::add_from_source`], the new adapter comes last, and becomes the only active one, in inference mode. (PEFT
/// leaves the active set as it was.) The parameters are copies: training one adapter does not change another.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable, nn::Linear};
/// # struct Mlp { up_proj: Linear }
/// # adaptable!(Mlp { up_proj });
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let base = Mlp { up_proj: Linear::new(Tensor::randn(0f32, 1., (16, 8), &Device::Cpu)?, None) };
/// use peft_lora::{Combination, LoraConfig, add_weighted_adapter};
///
/// let mut model = PeftModel::new(base);
/// model.add_adapter("german", LoraConfig::with_rank(2, TargetSpec::new(ModuleNames::list(["up_proj"]))))?;
/// model.add_adapter("polite", LoraConfig::with_rank(3, TargetSpec::new(ModuleNames::list(["up_proj"]))))?;
/// let both = [("german", 0.7), ("polite", 0.3)];
/// let adapter = add_weighted_adapter(&mut model, "both", &both, Combination::Cat)?;
/// assert_eq!(adapter.config.method.downcast_ref::<LoraConfig>().map(|c| c.r), Some(5));
/// assert_eq!(model.active().collect::<Vec<_>>(), ["both"]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`combine`], and when a name is unknown, the new one is taken or unusable, or adapters are merged. The model is untouched
/// then.
pub fn add_weighted_adapter<'m, M: Adaptable>(
    model: &'m mut PeftModel<M>,
    name: &str,
    adapters: &[(&str, f64)],
    combination: Combination,
) -> Result<&'m Adapter> {
    if model.adapters().iter().any(|adapter| &*adapter.name == name) {
        return Err(Error::DuplicateAdapter(name.to_owned()));
    }
    let detached = adapters.iter().map(|(name, _)| model.detached(name)).collect::<Result<Vec<_>>>()?;
    let weighted: Vec<WeightedAdapter<'_>> =
        adapters.iter().zip(&detached).map(|((name, weight), one)| WeightedAdapter::new(name, one, *weight)).collect();
    let ConvertedLora { config, tensors, .. } = combine(&weighted, combination)?;
    model.add_from_source(name, config, &tensors)
}
