//! Truncated singular value decomposition of a weight.

mod full;
mod kernel;
mod lanczos;
mod panel;
mod refine;
mod ritz;
mod search;
mod threads;
mod triplets;

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use panel::Panel;
pub use threads::{Threads, side_by_side};
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

/// Which algorithm this is: another number wherever the same matrix may give other bits. Cached results of others are not used.
pub const VERSION: u32 = 1;

/// The residual, as a part of the largest singular value, that an iteration may end with. What misses it is decomposed completely.
pub const TOLERANCE: f64 = 1e-6;

/// The `min(r, rows, cols)` leading singular triplets of a `(rows, cols)` matrix, computed on the CPU and handed out on the matrix's device.
///
/// A few triplets of a large matrix are found by block Lanczos iteration on `W^T W` with full reorthogonalisation, improved in f64, and
/// checked against the matrix ([`Certificate`]); small matrices, and whatever the iteration does not settle, are decomposed
/// completely, in f64. The matrix is read as it is when it holds f32 numbers row by row in the memory of the CPU; of any other one copy
/// in f32 is made, and f64 input is narrowed. A small matrix much wider than high is turned first, in a copy, because the vectors of the
/// iteration are as long as its rows. The work is cut by the shape alone and the start is fixed, so the same matrix gives the
/// same bits on the same machine, whatever the number of threads. Matrices of four million elements use all threads; callers
/// decompose several smaller ones side by side. Singular vectors of equal singular values, and of those that are zero, are one
/// orthonormal choice among many.
///
/// # Errors
/// When the tensor is not a matrix of floats with elements, holds NaN or infinity, or has an entry or a singular value
/// beyond the range of f32; when `r` is 0.
pub fn truncated_svd(weight: &Tensor, r: usize) -> Result<TruncatedSvd> {
    truncated_svd_on(weight, r, Threads::All)
}

/// [`truncated_svd`] on these threads: the same bits, sooner or later.
///
/// # Errors
/// As [`truncated_svd`].
pub fn truncated_svd_on(weight: &Tensor, r: usize, threads: Threads) -> Result<TruncatedSvd> {
    let (rows, cols) = weight.dims2()?;
    if !weight.dtype().is_float() {
        return Err(Error::Decomposition(format!("a {} matrix is not one of floats", weight.dtype().as_str())));
    }
    let rank = r.min(rows).min(cols);
    if rank == 0 {
        return Err(Error::Decomposition(format!("a decomposition of rank {r} of a {rows} x {cols} matrix is empty")));
    }
    let turned = iterates(rows, cols, rank) && cols >= WIDE * rows && rows * cols < LARGE;
    let (found, scale) = panel::with_panel(weight, turned, threads, |panel, scale| {
        // From inside the pool, work is handed out without waking this thread up each time.
        let found = if panel.shared() { rayon::scope(|_| checked(panel, rank)) } else { checked(panel, rank) };
        Ok((found?, scale))
    })?;
    let found = if turned { found.turned() } else { found };
    found.into_result(scale, weight.device())
}

/// Triplets that fit the weight.
struct Checked {
    triplets: Triplets,
    fit: Fit,
    overlooked: f64,
    complete: bool,
}

/// By iteration if it settles the matter, otherwise completely.
fn checked(panel: &Panel<'_>, rank: usize) -> Result<Checked> {
    if iterates(panel.rows, panel.cols, rank)
        && let Some(found) = search::leading(panel, rank, TOLERANCE)?
        && let Some((triplets, fit)) = refine::refine(panel, &found, TOLERANCE)?
    {
        return Ok(Checked { triplets, fit, overlooked: found.overlooked, complete: false });
    }
    let (u, s, v) = full::decompose(panel)?;
    let triplets = Triplets::new(u.as_ref(), &s, v.as_ref(), rank);
    let fit = triplets.fit(panel);
    if fit.worst() > TOLERANCE {
        return Err(Error::Decomposition(format!(
            "the complete one misses the weight by {:.1e} of its largest singular value",
            fit.worst()
        )));
    }
    Ok(Checked { triplets, fit, overlooked: 0.0, complete: true })
}

impl Checked {
    /// Those of the transposed weight.
    fn turned(self) -> Self {
        let Fit { left, right, residuals, orthogonality } = self.fit;
        let fit = Fit { left: right, right: left, residuals, orthogonality };
        Self { triplets: self.triplets.turned(), fit, ..self }
    }

    /// Tensors on a device, for a weight that was divided by `scale`.
    fn into_result(self, scale: f64, device: &Device) -> Result<TruncatedSvd> {
        let Triplets { u, s, v } = self.triplets;
        let (rank, rows, cols) = (s.len(), u.len() / s.len(), v.len() / s.len());
        let narrow = |values: &[f64], scale: f64| -> Vec<f32> { values.iter().map(|v| (v * scale) as f32).collect() };
        let s = narrow(&s, scale);
        if s.iter().any(|s| s.is_infinite()) {
            return Err(Error::Decomposition(
                "the largest singular value of the weight is beyond the range of f32".to_owned(),
            ));
        }
        let Fit { left, right, orthogonality, .. } = self.fit;
        let (overlooked, complete) = (self.overlooked, self.complete);
        Ok(TruncatedSvd {
            u: Tensor::from_vec(narrow(&u, 1.0), (rank, rows), device)?.t()?.contiguous()?,
            s: Tensor::from_vec(s, rank, device)?,
            vt: Tensor::from_vec(narrow(&v, 1.0), (rank, cols), device)?,
            certificate: Certificate { left, right, orthogonality, overlooked, complete },
        })
    }
}

/// From how many times wider than high on a matrix is turned.
const WIDE: usize = 4;
/// From how many elements on turning takes longer than it saves.
const LARGE: usize = 1 << 22;

/// Whether a few triplets are worth an iteration.
fn iterates(rows: usize, cols: usize, rank: usize) -> bool {
    let side = rows.min(cols);
    side >= 96 && rank * 8 <= side
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Threads, TruncatedSvd, kernel, truncated_svd_on};
    use crate::torch_rng::TorchRng;
    use candle_core::{Device, Tensor};

    fn normal(rows: usize, cols: usize, seed: u64) -> Tensor {
        Tensor::from_vec(TorchRng::new(seed).normal(0.0, 1.0, rows * cols), (rows, cols), &Device::Cpu).unwrap()
    }

    /// The decomposition as a machine without vector instructions makes it.
    fn scalar(weight: &Tensor, r: usize) -> TruncatedSvd {
        kernel::SCALAR.set(true);
        let svd = truncated_svd_on(weight, r, Threads::One);
        kernel::SCALAR.set(false);
        svd.unwrap()
    }

    fn largest(tensor: &Tensor) -> f32 {
        tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// A weight, its transposed copy and its transposed view are decomposed on different ways.
    #[test]
    fn a_wide_matrix_is_turned_and_back() {
        let wide = normal(100, 500, 7);
        let high = wide.t().unwrap().contiguous().unwrap();
        let [copy, view, turned] =
            [&wide, &high.t().unwrap(), &high].map(|w| truncated_svd_on(w, 2, Threads::One).unwrap());
        for (a, b) in [(&copy.u, &view.u), (&copy.s, &view.s), (&copy.vt, &view.vt)] {
            assert_eq!(largest(&(a - b).unwrap()), 0.0);
        }
        let product = |svd: &TruncatedSvd| svd.u.broadcast_mul(&svd.s).unwrap().matmul(&svd.vt).unwrap();
        assert!(largest(&(product(&copy) - product(&turned).t().unwrap()).unwrap()) < 1e-4);
        // Signs follow the left vectors, whichever way it went.
        for j in 0..2 {
            let u: Vec<f32> = copy.u.narrow(1, j, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(u.iter().fold(0f32, |l, x| if x.abs() > l.abs() { *x } else { l }) > 0.0);
        }
        assert!(!copy.certificate.complete && copy.certificate.left.iter().all(|e| *e <= super::TOLERANCE));
    }

    /// Compact checkpoints rest on this: their factors are made again on another machine.
    #[test]
    fn machines_without_vector_instructions_find_the_same_factors() {
        let mut apart = 0f32;
        for (rows, cols, r) in [(576, 576, 2), (192, 576, 2), (1536, 300, 4), (300, 1536, 8), (128, 600, 2)] {
            let flat = normal(rows, cols, 7);
            let falling = normal(rows, 40, 8).matmul(&normal(40, cols, 9)).unwrap();
            for weight in [flat, falling] {
                let (here, there) = (truncated_svd_on(&weight, r, Threads::One).unwrap(), scalar(&weight, r));
                assert!(!here.certificate.complete && !there.certificate.complete);
                for (here, there) in [(&here.u, &there.u), (&here.vt, &there.vt), (&here.s, &there.s)] {
                    let difference = largest(&(here - there).unwrap()) / largest(here);
                    assert!(difference <= 1e-5, "{rows} x {cols}: {difference:e}");
                    apart = apart.max(difference);
                }
            }
        }
        // The two really are different arithmetic.
        assert!(apart > 0.0);
    }
}
