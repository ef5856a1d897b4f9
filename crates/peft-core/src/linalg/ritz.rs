//! What a Krylov space says about the eigenvalues of the whole matrix.

use super::lanczos::{BLOCK, Lanczos};
use crate::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, Par};

/// The eigenpairs of the matrix projected on the space, in descending order.
pub(super) struct Ritz {
    /// The eigenvalues.
    pub(super) values: Vec<f64>,
    /// The eigenvectors, in the basis of the space.
    pub(super) vectors: Mat<f64>,
    /// For each pair, by how much it fails to be one of the whole matrix, in the next block of the basis.
    residuals: Vec<[f64; BLOCK]>,
}

impl Ritz {
    /// # Errors
    /// When the decomposition does not converge.
    pub(super) fn new(projected: &Mat<f64>, coupling: &[[f64; BLOCK]; BLOCK]) -> Result<Self> {
        let size = projected.nrows();
        // Both triangles hold the same numbers up to the rounding of products.
        let symmetric = Mat::from_fn(size, size, |i, j| 0.5 * (projected[(i, j)] + projected[(j, i)]));
        let (mut ascending, mut vectors) = (Diag::zeros(size), Mat::zeros(size, size));
        let scratch = self_adjoint_evd_scratch::<f64>(size, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        let mut buffer = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut buffer);
        let (values, eigenvectors) = (ascending.as_mut(), Some(vectors.as_mut()));
        self_adjoint_evd(symmetric.as_ref(), values, eigenvectors, Par::Seq, stack, Default::default())
            .map_err(|e| Error::Decomposition(format!("the eigenvalues of a small matrix did not converge: {e:?}")))?;
        let vectors = vectors.reverse_cols().to_owned();
        let mut values: Vec<f64> = ascending.column_vector().iter().copied().collect();
        values.reverse();
        let last = vectors.as_ref().subrows(size - BLOCK, BLOCK);
        let residual = |j| coupling.map(|row| (0..BLOCK).map(|i| row[i] * last[(i, j)]).sum());
        let residuals = (0..size).map(residual).collect();
        Ok(Self { values, vectors, residuals })
    }

    /// `||A y - theta y||` of a pair.
    pub(super) fn residual(&self, pair: usize) -> f64 {
        self.residuals[pair].iter().map(|r| r * r).sum::<f64>().sqrt()
    }

    /// The singular value that an eigenvalue is the square of.
    pub(super) fn singular(&self, pair: usize) -> f64 {
        self.values[pair].max(0.0).sqrt()
    }

    /// The first singular values.
    pub(super) fn singulars(&self, count: usize) -> Vec<f64> {
        (0..count).map(|pair| self.singular(pair)).collect()
    }

    /// The first eigenvectors in the basis of the space, `(size, count)`.
    fn leading(&self, count: usize) -> Vec<f64> {
        (0..self.values.len()).flat_map(|i| (0..count).map(move |j| self.vectors[(i, j)])).collect()
    }

    /// The first eigenvectors, one after the other.
    pub(super) fn combine(&self, lanczos: &Lanczos<'_>, count: usize) -> Vec<f64> {
        lanczos.combine(&self.leading(count))
    }

    /// How small the start block must have been in a direction that was overlooked.
    ///
    /// Let `x` be a unit eigenvector of the matrix deflated by the first `found` pairs, with an eigenvalue of at least `bound`, which
    /// lies above all other eigenvalues in the space. Multiplying `A Q = Q T + N C` by `x` from the left gives the components of `x`
    /// along the remaining Ritz vectors, and from those along the start block: their norm is at most that of
    /// `sum_j f_j s_j^T / (bound - theta_j)`, where `f_j` and `s_j` are the first block of Ritz vector `j` and its residual. Products
    /// with an error of `noise` add that times the norm of `sum_j f_j / (bound - theta_j)`. Returns the two parts.
    pub(super) fn overlooked(&self, found: usize, bound: f64, noise: f64) -> (f64, f64) {
        let mut sum = [[0.0; BLOCK]; BLOCK];
        let mut square = 0.0;
        for j in found..self.values.len() {
            let gap = bound - self.values[j];
            for (i, row) in sum.iter_mut().enumerate() {
                let first = self.vectors[(i, j)] / gap;
                square += first * first;
                for (entry, residual) in row.iter_mut().zip(&self.residuals[j]) {
                    *entry += first * residual;
                }
            }
        }
        (sum.iter().flatten().map(|v| v * v).sum::<f64>().sqrt(), noise * square.sqrt())
    }
}
