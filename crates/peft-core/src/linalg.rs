//! Truncated singular value decomposition of a weight.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, SvdError, svd, svd_scratch};
use faer::{Mat, MatRef, Par};

/// The leading singular triplets of a matrix: `W ~ u diag(s) vt`.
///
/// Signs are free in a singular value decomposition; here the entry of largest magnitude in each column of `u` (the
/// first of them, if there are several) is positive, so that two runs agree.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TruncatedSvd {
    /// Left singular vectors, `(rows, r)`, f32.
    pub u: Tensor,
    /// Singular values in descending order, `(r)`, f32.
    pub s: Tensor,
    /// Right singular vectors, `(r, cols)`, f32.
    pub vt: Tensor,
}

/// The `min(r, rows, cols)` leading singular triplets of a `(rows, cols)` matrix, computed in f32 on the CPU and handed
/// out on the matrix's device.
///
/// The decomposition is complete and then truncated, as PEFT's is. One f32 copy of the matrix is made, and f64 input is
/// narrowed. One thread is used, so the same matrix gives the same bits on the same machine; callers decompose several
/// matrices side by side. Singular vectors of equal singular values, and of those that are zero, are one orthonormal
/// choice among many.
///
/// # Errors
/// When the tensor is not a matrix of floats with elements, holds NaN or infinity, or has an entry or a singular value
/// beyond the range of f32; when `r` is 0.
pub fn truncated_svd(weight: &Tensor, r: usize) -> Result<TruncatedSvd> {
    let (rows, cols) = weight.dims2()?;
    if !weight.dtype().is_float() {
        return Err(Error::Decomposition(format!("a {} matrix is not one of floats", weight.dtype().as_str())));
    }
    let rank = r.min(rows).min(cols);
    if rank == 0 {
        return Err(Error::Decomposition(format!("a decomposition of rank {r} of a {rows} x {cols} matrix is empty")));
    }
    let device = weight.device();
    let mut values: Vec<f32> = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::Decomposition(format!("the weight holds {bad} in f32")));
    }
    let scale = normalise(&mut values);
    let (u, s, v) = thin_svd(MatRef::from_row_major_slice(&values, rows, cols))
        .map_err(|e| Error::Decomposition(format!("it did not converge: {e:?}")))?;
    let (u, v) = (u.as_ref(), v.as_ref());
    let s: Vec<f32> = s.column_vector().iter().take(rank).map(|s| (f64::from(*s) * scale) as f32).collect();
    if s.iter().any(|s| s.is_infinite()) {
        return Err(Error::Decomposition(
            "the largest singular value of the weight is beyond the range of f32".to_owned(),
        ));
    }
    let signs: Vec<f32> = (0..rank).map(|j| sign_of_largest(u, j)).collect();
    let u: Vec<f32> = (0..rows).flat_map(|i| signs.iter().enumerate().map(move |(j, sign)| u[(i, j)] * sign)).collect();
    let vt: Vec<f32> =
        signs.iter().enumerate().flat_map(|(j, sign)| (0..cols).map(move |i| v[(i, j)] * sign)).collect();
    Ok(TruncatedSvd {
        u: Tensor::from_vec(u, (rows, rank), device)?,
        s: Tensor::from_vec(s, rank, device)?,
        vt: Tensor::from_vec(vt, (rank, cols), device)?,
    })
}

/// Divides by the power of two below the largest magnitude and returns it: the decomposition squares its input, which
/// in f32 would lose values below 1e-19 and overflow above 1e19.
fn normalise(values: &mut [f32]) -> f64 {
    let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let scale = f64::from(largest).log2().floor().exp2();
    for value in values {
        *value = (f64::from(*value) / scale) as f32;
    }
    scale
}

/// All `(u, s, v)` of a matrix.
type ThinSvd = (Mat<f32>, Diag<f32>, Mat<f32>);

/// The whole decomposition on this thread, whatever faer's global setting says: that is the application's to change.
fn thin_svd(matrix: MatRef<'_, f32>) -> Result<ThinSvd, SvdError> {
    let (rows, cols) = matrix.shape();
    let size = rows.min(cols);
    let (mut u, mut s, mut v) = (Mat::zeros(rows, size), Diag::zeros(size), Mat::zeros(cols, size));
    let thin = ComputeSvdVectors::Thin;
    let mut buffer = MemBuffer::new(svd_scratch::<f32>(rows, cols, thin, thin, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut buffer);
    svd(matrix, s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), Par::Seq, stack, Default::default())?;
    Ok((u, s, v))
}

/// The sign of the entry of largest magnitude in a column, of the first of them on a tie.
fn sign_of_largest(matrix: MatRef<'_, f32>, column: usize) -> f32 {
    let mut largest = 0f32;
    for i in 0..matrix.nrows() {
        let value = matrix[(i, column)];
        if value.abs() > largest.abs() {
            largest = value;
        }
    }
    if largest < 0.0 { -1.0 } else { 1.0 }
}
