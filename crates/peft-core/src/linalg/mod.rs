//! Truncated singular value decomposition of a weight.

mod full;
mod kernel;
mod lanczos;
mod panel;
mod refine;
mod ritz;
mod search;
mod triplets;

use crate::{Error, Result};
use candle_core::Tensor;
use panel::Panel;
use triplets::{Fit, Triplets};

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
    /// What was checked.
    pub certificate: Certificate,
}

/// What was measured of a result in f64, against the weight it was made from. Norms are parts of the largest singular value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Certificate {
    /// `||W v - s u||` of each triplet; at most [`TOLERANCE`].
    pub left: Vec<f64>,
    /// `||W^T u - s v||` of each triplet; at most [`TOLERANCE`] unless `complete`.
    pub right: Vec<f64>,
    /// The largest element of `U^T U - I` and `V^T V - I`: the rounding of the vectors to f32.
    pub orthogonality: f64,
    /// An upper bound of the probability, over the random start of the iteration, that a singular value above the last one was
    /// overlooked; at most `1e-6`, and 0 when everything was decomposed. Small residuals prove that triplets are singular triplets, not
    /// that they are the leading ones; this is what speaks for that.
    pub overlooked: f64,
    /// Whether the whole matrix was decomposed, as small ones are, and those that an iteration does not settle.
    pub complete: bool,
}

/// The residual, as a part of the largest singular value, that an iteration may end with. What misses it is decomposed completely.
pub const TOLERANCE: f64 = 1e-6;

/// The `min(r, rows, cols)` leading singular triplets of a `(rows, cols)` matrix, computed on the CPU and handed out on the matrix's device.
///
/// A few triplets of a large matrix are found by block Lanczos iteration on `W^T W` with full reorthogonalisation, improved in f64, and
/// checked against the matrix ([`Certificate`]); small matrices, and whatever the iteration does not settle, are decomposed
/// completely, in f64. The matrix is read as it is when it holds f32 numbers row by row in the memory of the CPU; of any other one copy
/// in f32 is made, and f64 input is narrowed. The work is cut by the shape alone and the start is fixed, so the same matrix gives the
/// same bits on the same machine, whatever the number of threads. Matrices of four million elements use all threads; callers
/// decompose several smaller ones side by side. Singular vectors of equal singular values, and of those that are zero, are one
/// orthonormal choice among many.
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
    let (triplets, fit, overlooked, complete, scale) = panel::with_f32(weight, |values, scale| {
        let panel = Panel::new(values, rows, cols)?;
        let refined = if iterates(rows, cols, rank) {
            let found = search::leading(&panel, rank, TOLERANCE)?;
            found
                .map(|found| Ok::<_, Error>((refine::refine(&panel, &found, TOLERANCE)?, found.overlooked)))
                .transpose()?
        } else {
            None
        };
        if let Some((Some((triplets, fit)), overlooked)) = refined {
            return Ok((triplets, fit, overlooked, false, scale));
        }
        let (u, s, v) = full::decompose(&panel)?;
        let triplets = Triplets::new(u.as_ref(), &s, v.as_ref(), rank);
        let fit = triplets.fit(&panel);
        Ok((triplets, fit, 0.0, true, scale))
    })?;
    let Fit { left, right, orthogonality, .. } = fit;
    let certificate = Certificate { left, right, orthogonality, overlooked, complete };
    let narrow = |values: &[f64]| -> Vec<f32> { values.iter().map(|v| *v as f32).collect() };
    let s: Vec<f32> = triplets.s.iter().map(|s| (s * scale) as f32).collect();
    if s.iter().any(|s| s.is_infinite()) {
        return Err(Error::Decomposition(
            "the largest singular value of the weight is beyond the range of f32".to_owned(),
        ));
    }
    let device = weight.device();
    Ok(TruncatedSvd {
        u: Tensor::from_vec(narrow(&triplets.u), (rank, rows), device)?.t()?.contiguous()?,
        s: Tensor::from_vec(s, rank, device)?,
        vt: Tensor::from_vec(narrow(&triplets.v), (rank, cols), device)?,
        certificate,
    })
}

/// Whether a few triplets are worth an iteration.
fn iterates(rows: usize, cols: usize, rank: usize) -> bool {
    let side = rows.min(cols);
    side >= 96 && rank * 8 <= side
}
