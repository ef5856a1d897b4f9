//! The factors of one module, combined.

use super::Combination;
use crate::convert::{Factors, product};
use crate::layer::Names;
use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::DetachedSite;
use peft_core::{Error, HostKind, LoraFactors, Result};

/// One adapter's part at a module, as checkpoints have it.
pub(super) struct Term<'a> {
    pub(super) path: &'a str,
    pub(super) names: Names,
    adapter: &'a str,
    /// `(r, cols)`; of an embedding `(r, entries)`.
    a: Tensor,
    /// `(rows, r)`; of an embedding `(dim, r)`.
    b: Tensor,
    weight: f64,
    scaling: f64,
}

impl<'a> Term<'a> {
    pub(super) fn new(adapter: &'a str, weight: f64, site: &'a DetachedSite) -> Result<Self> {
        let factors = site.layer.lora_factors()?;
        let LoraFactors { a, b, scale: scaling } = factors.ok_or_else(|| {
            let what = format!("what `{adapter}` changes is not a product of two factors, as with DoRA or `lora_bias`");
            Error::Combination(what)
        })?;
        let (names, a, b) = match site.spec.kind {
            HostKind::Embedding => (Names::EMBEDDING, b.t()?.contiguous()?, a.t()?.contiguous()?),
            _ => (Names::LINEAR, a, b),
        };
        Ok(Self { path: &site.path, names, adapter, a, b, weight, scaling })
    }

    pub(super) fn rank(&self) -> Result<usize> {
        Ok(self.a.dim(0)?)
    }
}

impl Combination {
    /// The rank of every module of the combined adapter, from those of the adapters.
    pub(super) fn rank(self, ranks: Vec<usize>) -> Result<usize> {
        let largest = ranks.iter().copied().max().unwrap_or_default();
        match self {
            Self::Cat => Ok(ranks.iter().sum()),
            Self::Linear if ranks.iter().any(|rank| *rank != largest) => Err(unequal(ranks)),
            Self::Linear => Ok(largest),
            Self::Svd { rank: Some(0), .. } => Err(Error::Combination("the rank of `svd` must be positive".to_owned())),
            Self::Svd { rank, .. } => Ok(rank.unwrap_or(largest)),
        }
    }

    /// The factors of one module that these adapters adapt, in the shapes of a [`Term`]'s and filled with zeros up to `rank`.
    pub(super) fn of(self, terms: &[&Term<'_>], rank: usize) -> Result<Factors> {
        one_shape(terms)?;
        let sum = cat(terms)?;
        let Factors { a, b, error } = match self {
            Self::Linear => linear(terms)?.measured(&sum)?,
            Self::Cat => sum,
            Self::Svd { clamp, .. } => {
                let nearest = product::nearest(&sum.a, &sum.b, rank)?;
                match clamp {
                    Some(quantile) => clamped(&nearest, quantile)?.measured(&sum)?,
                    None => nearest,
                }
            }
        };
        let missing = rank.saturating_sub(a.dim(0)?);
        Ok(Factors { a: a.pad_with_zeros(0, 0, missing)?, b: b.pad_with_zeros(1, 0, missing)?, error })
    }
}

fn unequal(ranks: Vec<usize>) -> Error {
    Error::Combination(format!("`linear` needs equal ranks, not {ranks:?}"))
}

/// Adapters that were made for one model agree about the shape of a module.
fn one_shape(terms: &[&Term<'_>]) -> Result<()> {
    let shape = |term: &Term<'_>| Ok::<_, Error>((term.b.dim(0)?, term.a.dim(1)?, term.names));
    for pair in terms.windows(2) {
        let (one, other) = (shape(pair[0])?, shape(pair[1])?);
        if one != other {
            return Err(Error::Combination(format!(
                "`{}` adapts a weight of {} x {} here, and `{}` one of {} x {}: they belong to different models",
                pair[0].adapter, one.0, one.1, pair[1].adapter, other.0, other.1
            )));
        }
    }
    Ok(())
}

fn linear(terms: &[&Term<'_>]) -> Result<Factors> {
    let mut sum: Option<Factors> = None;
    for term in terms {
        let factor = term.weight * term.scaling;
        let root = factor.abs().sqrt();
        // The sign goes to one side: on both it would be lost.
        let (a, b) = ((&term.a * if factor < 0.0 { -root } else { root })?, (&term.b * root)?);
        let (a, b) = match sum {
            None => (a, b),
            Some(sum) if sum.a.shape() != a.shape() => {
                return Err(unequal(terms.iter().map(|term| term.rank()).collect::<Result<_>>()?));
            }
            Some(sum) => ((sum.a + a)?, (sum.b + b)?),
        };
        sum = Some(Factors { a, b, error: 0.0 });
    }
    sum.ok_or_else(|| Error::Combination("none adapts this module".to_owned()))
}

fn cat(terms: &[&Term<'_>]) -> Result<Factors> {
    let a = terms.iter().map(|term| Ok(((&term.a * term.weight)? * term.scaling)?)).collect::<Result<Vec<_>>>()?;
    let b: Vec<&Tensor> = terms.iter().map(|term| &term.b).collect();
    Ok(Factors { a: Tensor::cat(&a, 0)?, b: Tensor::cat(&b, 1)?, error: 0.0 })
}

/// The factors with every entry limited to the quantile of all of them, and to its negative.
fn clamped(Factors { a, b, .. }: &Factors, quantile: f64) -> Result<Factors> {
    if !(0.0..=1.0).contains(&quantile) {
        return Err(Error::Combination(format!("`clamp` is {quantile}; it must be between 0 and 1")));
    }
    let entries = |tensor: &Tensor| -> Result<Vec<f32>> {
        Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let limit = f64::from(quantile_of([entries(b)?, entries(a)?].concat(), quantile));
    if limit < 0.0 {
        let reason = format!("the quantile {quantile} of the factors is {limit}; `clamp` must be larger");
        return Err(Error::Combination(reason));
    }
    Ok(Factors { a: a.clamp(-limit, limit)?, b: b.clamp(-limit, limit)?, error: 0.0 })
}

impl Factors {
    /// The same with its relative distance from another product, to about 1e-8.
    fn measured(self, exact: &Self) -> Result<Self> {
        let difference = norm(&Tensor::cat(&[&exact.a, &self.a], 0)?, &Tensor::cat(&[&exact.b, &self.b.neg()?], 1)?)?;
        let all = norm(&exact.a, &exact.b)?;
        Ok(Self { error: if all == 0.0 { 0.0 } else { difference / all }, ..self })
    }
}

/// The Frobenius norm of `b a`, without the product: `|b a|^2` is the sum of the entries of `(b^T b) * (a a^T)`.
fn norm(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let squares = (b.t()?.matmul(&b)? * a.matmul(&a.t()?)?)?;
    Ok(squares.sum_all()?.to_scalar::<f64>()?.max(0.0).sqrt())
}

/// A quantile, interpolated between neighbours as `torch.quantile` does.
fn quantile_of(mut values: Vec<f32>, quantile: f64) -> f32 {
    values.sort_by(f32::total_cmp);
    let place = quantile * (values.len().saturating_sub(1)) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    match (values.get(below), values.get(above)) {
        (Some(below), Some(above)) => below + (above - below) * place.fract() as f32,
        _ => 0.0,
    }
}
