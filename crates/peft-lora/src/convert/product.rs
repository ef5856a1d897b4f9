//! A product of two factors, cut down to its leading singular directions without being multiplied out.

use super::Factors;
use super::rank::Rank;
use candle_core::{DType, Device, Tensor};
use faer::linalg::solvers::{Qr, Svd};
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

fn truncated(whole: Factors, own: usize, rank: Rank) -> Result<Factors> {
    let product = Decomposed::of(&whole.a, &whole.b)?;
    let kept = product.keep(rank);
    if kept == own { Ok(whole) } else { product.leading(kept, &whole.a) }
}

/// The best approximation of `b a` of this rank: `A = V^T`, `B = U S`, also where nothing is left out. Directions beyond those of the
/// product are not made up, so that there may be fewer.
///
/// # Errors
/// When a factor holds NaN or infinity.
pub(crate) fn nearest(a: &Tensor, b: &Tensor, rank: usize) -> Result<Factors> {
    let product = Decomposed::of(a, b)?;
    product.leading(product.keep(Rank::Fixed(rank)), a)
}

/// With `B = Q_b R_b` and `A^T = Q_a R_a`, the singular values of `B A` are those of the small matrix `R_b R_a^T`. All of it is
/// computed in f64, and what is lost is known from the singular values that are left out.
struct Decomposed {
    b: Qr<f64>,
    a: Qr<f64>,
    core: Svd<f64>,
    s: Vec<f64>,
}

impl Decomposed {
    fn of(a: &Tensor, b: &Tensor) -> Result<Self> {
        let (b, a) = (read(b)?.qr(), read(a)?.transpose().qr());
        let core = (b.thin_R() * a.thin_R().transpose()).thin_svd();
        let core = core.map_err(|e| Error::Decomposition(format!("it did not converge: {e:?}")))?;
        let s = core.S().column_vector().iter().copied().collect();
        Ok(Self { b, a, core, s })
    }

    fn keep(&self, rank: Rank) -> usize {
        rank.keep(&self.s, 4.0 * self.s.len() as f64 * f64::EPSILON)
    }

    /// So many singular directions as tensors like this one.
    fn leading(&self, kept: usize, like: &Tensor) -> Result<Factors> {
        let mut left = self.b.compute_thin_Q() * self.core.U().subcols(0, kept);
        let mut right = self.a.compute_thin_Q() * self.core.V().subcols(0, kept);
        for (j, s) in self.s.iter().take(kept).enumerate() {
            // Signs are free in a singular value decomposition; the entry of largest magnitude on the left is positive.
            let largest = left.col(j).iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs()));
            let sign = largest.map_or(1.0, f64::signum);
            left.col_mut(j).iter_mut().for_each(|value| *value *= sign * s);
            right.col_mut(j).iter_mut().for_each(|value| *value *= sign);
        }
        let (a, b) = (write(right.transpose(), like)?, write(left.as_ref(), like)?);
        Ok(Factors { a, b, error: share_left_out(&self.s, kept) })
    }
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
