//! The whole decomposition.

use super::panel::Panel;
use crate::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Mat, MatRef, Par};

/// All `(u, s, v)` of a matrix, singular vectors as columns.
pub(super) type ThinSvd = (Mat<f64>, Vec<f64>, Mat<f64>);

/// The whole decomposition on this thread, whatever faer's global setting says: that is the application's to change.
///
/// # Errors
/// When it does not converge.
pub(super) fn thin_svd(matrix: MatRef<'_, f64>) -> Result<ThinSvd> {
    let (rows, cols) = matrix.shape();
    let size = rows.min(cols);
    let (mut u, mut s, mut v) = (Mat::zeros(rows, size), Diag::zeros(size), Mat::zeros(cols, size));
    let thin = ComputeSvdVectors::Thin;
    let mut buffer = MemBuffer::new(svd_scratch::<f64>(rows, cols, thin, thin, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut buffer);
    svd(matrix, s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), Par::Seq, stack, Default::default())
        .map_err(|e| Error::Decomposition(format!("it did not converge: {e:?}")))?;
    Ok((u, s.column_vector().iter().copied().collect(), v))
}

/// The whole decomposition of a weight, in a copy in f64.
///
/// # Errors
/// When it does not converge.
pub(super) fn decompose(panel: &Panel<'_>) -> Result<ThinSvd> {
    thin_svd(Mat::from_fn(panel.rows, panel.cols, |i, j| f64::from(panel.at(i, j))).as_ref())
}
