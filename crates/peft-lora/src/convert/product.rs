//! A product of two factors, cut down to its leading singular directions without being multiplied out.

use super::Factors;
use super::rank::Rank;
use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};
use peft_core::{Error, LoraFactors, Result, adapter_dtype};

/// The best factors of the rank asked for, or the layer's own where those are no larger.
///
/// # Errors
/// When factors that have to be decomposed hold NaN or infinity.
pub(super) fn convert(factors: &LoraFactors, rank: Rank) -> Result<Factors> {
    let dtype = adapter_dtype(factors.a.dtype());
    let (a, b) = (factors.a.to_dtype(dtype)?, factors.b.to_dtype(dtype)?);
    let b = if factors.scale == 1.0 { b } else { (b * factors.scale)? };
    let own = a.dim(0)?;
    let whole = Factors { a, b, error: 0.0 };
    match rank {
        Rank::Exact => Ok(whole),
        Rank::Fixed(rank) if own <= rank => Ok(whole),
        _ => truncated(whole, own, rank),
    }
}

/// With `B = Q_b R_b` and `A^T = Q_a R_a`, the singular values of `B A` are those of the small matrix `R_b R_a^T`. All of it is
/// computed in f64, and what is lost is known from the singular values that are left out.
fn truncated(whole: Factors, own: usize, rank: Rank) -> Result<Factors> {
    let b = read(&whole.b)?.qr();
    let a = read(&whole.a)?.transpose().qr();
    let core = b.thin_R() * a.thin_R().transpose();
    let svd = core.thin_svd().map_err(|e| Error::Decomposition(format!("it did not converge: {e:?}")))?;
    let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let kept = rank.keep(&s, 4.0 * s.len() as f64 * f64::EPSILON);
    if kept == own {
        return Ok(whole);
    }
    let mut left = b.compute_thin_Q() * svd.U().subcols(0, kept);
    let mut right = a.compute_thin_Q() * svd.V().subcols(0, kept);
    for (j, s) in s.iter().take(kept).enumerate() {
        // Signs are free in a singular value decomposition; the entry of largest magnitude on the left is positive.
        let largest = left.col(j).iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs()));
        let sign = largest.map_or(1.0, f64::signum);
        left.col_mut(j).iter_mut().for_each(|value| *value *= sign * s);
        right.col_mut(j).iter_mut().for_each(|value| *value *= sign);
    }
    let a = write(right.transpose(), &whole.a)?;
    Ok(Factors { a, b: write(left.as_ref(), &whole.b)?, error: share_left_out(&s, kept) })
}

/// `|delta - delta_k| / |delta|` in Frobenius norms, from the singular values; 0 for a delta of zero.
fn share_left_out(s: &[f64], kept: usize) -> f64 {
    let norm = |s: &[f64]| s.iter().fold(0.0, |norm: f64, s| norm.hypot(*s));
    let all = norm(s);
    if all == 0.0 { 0.0 } else { norm(&s[kept..]) / all }
}

fn read(tensor: &Tensor) -> Result<Mat<f64>> {
    let (rows, cols) = tensor.dims2()?;
    let values: Vec<f64> = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    match values.iter().find(|value| !value.is_finite()) {
        Some(bad) => Err(Error::Decomposition(format!("a factor of the delta holds {bad}"))),
        None => Ok(MatRef::from_row_major_slice(&values, rows, cols).to_owned()),
    }
}

/// A matrix as a tensor of the dtype and on the device of the one it replaces.
fn write(matrix: MatRef<'_, f64>, like: &Tensor) -> Result<Tensor> {
    let (rows, cols) = matrix.shape();
    let values: Vec<f64> = (0..rows).flat_map(|i| (0..cols).map(move |j| matrix[(i, j)])).collect();
    let tensor = Tensor::from_vec(values, (rows, cols), &Device::Cpu)?;
    Ok(tensor.to_dtype(like.dtype())?.to_device(like.device())?)
}
