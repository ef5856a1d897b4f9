//! A delta that is no product, cut down to its leading singular directions.

use super::Factors;
use super::rank::Rank;
use candle_core::{DType, Tensor};
use peft_core::Result;
use peft_core::linalg::{Threads, truncated_svd_on};

/// The best factors of the rank asked for, in f32.
///
/// # Errors
/// When the delta cannot be decomposed ([`truncated_svd_on`]).
pub(super) fn convert(delta: &Tensor, rank: Rank) -> Result<Factors> {
    let delta = delta.to_dtype(DType::F32)?;
    let (rows, cols) = delta.dims2()?;
    let computed = match rank {
        Rank::Fixed(rank) => rank,
        _ => rows.min(cols),
    };
    // Other modules are converted at the same time.
    let svd = truncated_svd_on(&delta, computed, Threads::One)?;
    let s: Vec<f64> = svd.s.to_dtype(DType::F64)?.to_vec1()?;
    let kept = rank.keep(&s, f32::EPSILON.into());
    let b = svd.u.narrow(1, 0, kept)?.broadcast_mul(&svd.s.narrow(0, 0, kept)?)?;
    let a = svd.vt.narrow(0, 0, kept)?.contiguous()?;
    // Measured, because singular values in f32 do not tell a small rest from rounding.
    let (all, rest) = (norm(&delta)?, norm(&(&delta - b.matmul(&a)?)?)?);
    Ok(Factors { a, b, error: if all == 0.0 { 0.0 } else { rest / all } })
}

/// The Frobenius norm, summed in f64.
fn norm(matrix: &Tensor) -> Result<f64> {
    let values: Vec<f32> = matrix.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt())
}
