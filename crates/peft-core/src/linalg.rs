//! Truncated singular value decomposition of a weight.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use faer::MatRef;

/// The leading singular triplets of a matrix: `W ~ u diag(s) vt`.
///
/// Signs are free in a singular value decomposition; here the entry of largest magnitude in each column of `u` (the first of
/// them, if there are several) is positive, so that two runs agree.
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

/// The `min(r, rows, cols)` leading singular triplets of a `(rows, cols)` matrix, computed in f32 on the CPU and handed out on
/// the matrix's device.
///
/// The decomposition is complete and then truncated, as PEFT's is. One f32 copy of the matrix is made, and f64 input is narrowed.
/// One thread is used, so the same matrix gives the same bits; callers decompose several matrices side by side.
///
/// # Errors
/// When the tensor is not a matrix with elements, or holds NaN or infinity.
pub fn truncated_svd(weight: &Tensor, r: usize) -> Result<TruncatedSvd> {
    let (rows, cols) = weight.dims2()?;
    let rank = r.min(rows).min(cols);
    if rank == 0 {
        return Err(Error::config(format!("a decomposition of rank {r} of a {rows} x {cols} matrix is empty")));
    }
    let device = weight.device();
    let values: Vec<f32> = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::config(format!("the weight holds {bad}, so it has no singular value decomposition")));
    }
    let matrix = MatRef::from_row_major_slice(&values, rows, cols);
    let svd = matrix.thin_svd();
    let svd = svd.map_err(|e| Error::config(format!("the singular value decomposition did not converge: {e:?}")))?;
    let (u, v) = (svd.U(), svd.V());
    let s: Vec<f32> = svd.S().column_vector().iter().take(rank).copied().collect();
    let signs: Vec<f32> = (0..rank).map(|j| sign_of_largest(u, j)).collect();
    let u: Vec<f32> = (0..rows).flat_map(|i| signs.iter().enumerate().map(move |(j, sign)| u[(i, j)] * sign)).collect();
    let vt: Vec<f32> = signs.iter().enumerate().flat_map(|(j, sign)| (0..cols).map(move |i| v[(i, j)] * sign)).collect();
    Ok(TruncatedSvd {
        u: Tensor::from_vec(u, (rows, rank), device)?,
        s: Tensor::from_vec(s, rank, device)?,
        vt: Tensor::from_vec(vt, (rank, cols), device)?,
    })
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
