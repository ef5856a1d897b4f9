//! The factors of one module, combined.

use super::Combination;
use super::source::Source;
use crate::layer::Names;
use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::DetachedSite;
use peft_core::linalg::truncated_svd;
use peft_core::{Error, HostKind, LoraFactors, Result};

/// One adapter's part at a module, as checkpoints have it.
pub(super) struct Term<'a> {
    pub(super) names: Names,
    adapter: &'a str,
    /// `(r, cols)`; of an embedding `(r, entries)`.
    a: Tensor,
    /// `(rows, r)`; of an embedding `(dim, r)`.
    b: Tensor,
    weight: f64,
    scaling: f64,
}

/// The combined factors, in the shapes of a [`Term`]'s.
pub(super) struct Combined {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
}

impl<'a> Term<'a> {
    pub(super) fn new(source: &Source<'a>, site: &DetachedSite) -> Result<Self> {
        let factors = site.layer.lora_factors()?;
        let LoraFactors { a, b, scale } = factors.ok_or_else(|| {
            let what =
                format!("what `{}` changes is not a product of two factors, as with DoRA or `lora_bias`", source.name);
            Error::Combination(what)
        })?;
        let (names, a, b) = match site.spec.kind {
            HostKind::Embedding => (Names::EMBEDDING, b.t()?.contiguous()?, a.t()?.contiguous()?),
            _ => (Names::LINEAR, a, b),
        };
        Ok(Self { names, adapter: source.name, a, b, weight: source.weight, scaling: scale })
    }
}

impl Combination {
    /// The rank of every module of the combined adapter.
    pub(super) fn rank(self, sources: &[Source<'_>]) -> Result<usize> {
        let ranks = sources.iter().map(Source::rank);
        match self {
            Self::Cat => Ok(ranks.sum()),
            Self::Linear => {
                let all: Vec<usize> = ranks.collect();
                match all.as_slice() {
                    [first, rest @ ..] if rest.iter().all(|rank| rank == first) => Ok(*first),
                    _ => Err(unequal(all)),
                }
            }
            Self::Svd { rank: Some(0), .. } => Err(Error::Combination("the rank of `svd` must be positive".to_owned())),
            Self::Svd { rank, .. } => Ok(rank.or(ranks.max()).unwrap_or_default()),
        }
    }

    /// The factors of one module that these adapters adapt, filled with zeros up to `rank`.
    pub(super) fn of(self, terms: &[Term<'_>], rank: usize) -> Result<Combined> {
        one_shape(terms)?;
        let Combined { a, b } = match self {
            Self::Linear => linear(terms)?,
            Self::Cat => cat(terms)?,
            Self::Svd { clamp, .. } => {
                let low = nearest(&cat(terms)?, rank)?;
                match clamp {
                    Some(quantile) => low.clamp(quantile)?,
                    None => low,
                }
            }
        };
        let missing = rank.saturating_sub(a.dim(0)?);
        Ok(Combined { a: a.pad_with_zeros(0, 0, missing)?, b: b.pad_with_zeros(1, 0, missing)? })
    }
}

fn unequal(ranks: Vec<usize>) -> Error {
    Error::Combination(format!("`linear` needs equal ranks, not {ranks:?}"))
}

/// Adapters that were made for one model agree about the shape of a module.
fn one_shape(terms: &[Term<'_>]) -> Result<()> {
    let shape = |term: &Term<'_>| Ok::<_, Error>((term.b.dim(0)?, term.a.dim(1)?, term.names));
    for pair in terms.windows(2) {
        let (one, other) = (shape(&pair[0])?, shape(&pair[1])?);
        if one != other {
            return Err(Error::Combination(format!(
                "`{}` adapts a weight of {} x {} here, and `{}` one of {} x {}: they belong to different models",
                pair[0].adapter, one.0, one.1, pair[1].adapter, other.0, other.1
            )));
        }
    }
    Ok(())
}

fn linear(terms: &[Term<'_>]) -> Result<Combined> {
    let mut sum: Option<Combined> = None;
    for term in terms {
        let factor = term.weight * term.scaling;
        let root = factor.abs().sqrt();
        // The sign goes to one side: on both it would be lost.
        let (a, b) = ((&term.a * if factor < 0.0 { -root } else { root })?, (&term.b * root)?);
        sum = Some(match sum {
            None => Combined { a, b },
            Some(sum) if sum.a.shape() != a.shape() => {
                return Err(unequal(terms.iter().map(|term| Ok(term.a.dim(0)?)).collect::<Result<_>>()?));
            }
            Some(sum) => Combined { a: (sum.a + a)?, b: (sum.b + b)? },
        });
    }
    sum.ok_or_else(|| Error::Combination("none adapts this module".to_owned()))
}

fn cat(terms: &[Term<'_>]) -> Result<Combined> {
    let a = terms.iter().map(|term| Ok(((&term.a * term.weight)? * term.scaling)?)).collect::<Result<Vec<_>>>()?;
    let b: Vec<&Tensor> = terms.iter().map(|term| &term.b).collect();
    Ok(Combined { a: Tensor::cat(&a, 0)?, b: Tensor::cat(&b, 1)? })
}

/// The product's best approximation of a rank: `a = V^T`, `b = U S`.
///
/// The product is not formed. The decomposition of its thin left factor, times the right factor, has the same singular values and as
/// few rows as the factors have rank, which is far less than a weight has.
fn nearest(product: &Combined, rank: usize) -> Result<Combined> {
    let left = truncated_svd(&product.b, product.b.dim(1)?)?;
    let dtype = product.a.dtype();
    let inner = left.vt.broadcast_mul(&left.s.unsqueeze(1)?)?.matmul(&product.a.to_dtype(DType::F32)?)?;
    let right = truncated_svd(&inner, rank)?;
    let u = left.u.matmul(&right.u)?;
    let signs = u.gather(&u.abs()?.argmax_keepdim(0)?, 0)?.sign()?;
    let b = u.broadcast_mul(&signs)?.broadcast_mul(&right.s)?;
    let a = right.vt.broadcast_mul(&signs.t()?)?;
    Ok(Combined { a: a.to_dtype(dtype)?, b: b.to_dtype(dtype)? })
}

impl Combined {
    /// Limits every entry to the quantile of all of them, and to its negative.
    fn clamp(&self, quantile: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&quantile) {
            return Err(Error::Combination(format!("`clamp` is {quantile}; it must be between 0 and 1")));
        }
        let entries = |tensor: &Tensor| -> Result<Vec<f32>> {
            Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        let mut all = entries(&self.b)?;
        all.extend(entries(&self.a)?);
        let limit = f64::from(quantile_of(all, quantile));
        if limit < 0.0 {
            let reason = format!("the quantile {quantile} of the factors is {limit}; `clamp` must be larger");
            return Err(Error::Combination(reason));
        }
        Ok(Self { a: self.a.clamp(-limit, limit)?, b: self.b.clamp(-limit, limit)? })
    }
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
