//! From approximate right singular vectors to checked triplets.

use super::full::thin_svd;
use super::kernel::norm;
use super::lanczos::subtract_projections;
use super::panel::Panel;
use super::search::Found;
use super::triplets::{Fit, Triplets};
use crate::Result;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// A result is improved while a vector is estimated to be off by this angle, in radians.
const ANGLE: f64 = 3e-6;
/// Improvements, at the most.
const ROUNDS: usize = 3;
/// A vector that is this much shorter after orthogonalisation holds nothing new.
const NOTHING_NEW: f64 = 1e-8;

/// The triplets that belong to the found vectors, in f64; nothing when they miss the tolerance all the same.
///
/// # Errors
/// When a small decomposition does not converge.
pub(super) fn refine(panel: &Panel<'_>, found: &Found, tolerance: f64) -> Result<Option<(Triplets, Fit)>> {
    let r = found.values.len();
    let mut space = found.vectors.clone();
    for round in 0.. {
        let count = space.len() / panel.cols;
        let products = panel.times(&space);
        let (u, s, rotation) = thin_svd(MatRef::from_row_major_slice(&products, panel.rows, count))?;
        let v = product(MatRef::from_column_major_slice(&space, panel.cols, count), rotation.as_ref());
        let triplets = Triplets::new(u.as_ref(), &s, v.as_ref(), r);
        let fit = triplets.fit(panel);
        let corrections = corrections(found, &triplets, &fit, panel.cols);
        let angle = corrections.chunks(panel.cols).map(norm).fold(0.0, f64::max);
        let good = fit.worst() <= tolerance;
        if good && angle <= ANGLE || round == ROUNDS {
            return Ok(good.then_some((triplets, fit)));
        }
        space = orthonormal(triplets.v.chunks(panel.cols).chain(corrections.chunks(panel.cols)), panel.cols);
    }
    Ok(None)
}

/// What is missing from each right singular vector, to first order.
///
/// The residual of an eigenvector is the distance of its eigenvalue to that of each direction that is missing, times what is missing
/// of it. Inside the Krylov space directions and distances are known; outside, eigenvalues are small against that of the vector.
fn corrections(found: &Found, triplets: &Triplets, fit: &Fit, len: usize) -> Vec<f64> {
    let (lanczos, ritz) = (&found.lanczos, &found.ritz);
    let (r, size) = (triplets.s.len(), lanczos.size());
    let largest = ritz.values[0];
    let mut residuals = fit.residuals.clone();
    for (residual, s) in residuals.chunks_mut(len).zip(&triplets.s) {
        // Of `W^T W v = s^2 v`, where the one at hand is of `W^T u = s v`.
        residual.iter_mut().for_each(|v| *v *= s);
    }
    let coordinates = lanczos.coordinates(&residuals);
    let coordinates = MatRef::from_row_major_slice(&coordinates, size, r);
    let mut along = product(ritz.vectors.transpose(), coordinates);
    for i in 0..r {
        let value = triplets.s[i] * triplets.s[i];
        let outside = 1.0 / value.max(f64::EPSILON * largest);
        for j in 0..size {
            let distance = value - ritz.values[j];
            let known = j >= r && distance.abs() > 1e-8 * largest;
            along[(j, i)] *= if known { 1.0 / distance } else { 0.0 } - outside;
        }
        residuals[i * len..(i + 1) * len].iter_mut().for_each(|v| *v *= outside);
    }
    let along = product(ritz.vectors.as_ref(), along.as_ref());
    let along: Vec<f64> = (0..size).flat_map(|j| (0..r).map(move |i| (j, i))).map(|at| along[at]).collect();
    let mut corrections = lanczos.combine(&along);
    corrections.iter_mut().zip(&residuals).for_each(|(correction, residual)| *correction += residual);
    corrections
}

/// The product of two matrices on this thread, whatever faer's global setting says.
fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(product.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    product
}

/// An orthonormal basis of the span of vectors.
fn orthonormal<'a>(vectors: impl Iterator<Item = &'a [f64]>, len: usize) -> Vec<f64> {
    let mut basis: Vec<f64> = vec![];
    for vector in vectors {
        let mut vector = vector.to_vec();
        let mut new = true;
        // Twice is enough.
        for _ in 0..2 {
            let before = norm(&vector);
            subtract_projections(&basis, len, &mut vector, false);
            let after = norm(&vector);
            new &= after > NOTHING_NEW * before;
            vector.iter_mut().for_each(|v| *v /= after);
        }
        if new {
            basis.extend(vector);
        }
    }
    basis
}
