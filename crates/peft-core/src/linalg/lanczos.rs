//! Block Lanczos iteration with full reorthogonalisation.

use super::kernel::{add_multiples, add_multiples_of_parts, dot, norm};
use super::ritz::Ritz;
use crate::Result;
use crate::torch_rng::{Arithmetic, TorchRng};
use faer::Mat;
use rayon::prelude::*;

/// Vectors per block. A matrix is read once for all of them, and a singular value that is repeated up to this often is found as such.
pub(super) const BLOCK: usize = 3;
/// A vector this much shorter after orthogonalisation has lost digits and is orthogonalised again.
const CANCELLED: f64 = 1e-3;
/// A vector this much shorter than the longest is rounding error.
const VANISHED: f64 = 1e-15;

/// From how many numbers on a basis is shared out among threads.
const SHARED: usize = 1 << 17;
/// Vectors of a basis, and numbers of each, that are one piece of work then.
const PIECE: (usize, usize) = (16, 512);

/// An orthonormal basis of the block Krylov space of a symmetric matrix, grown block by block, in the complement of given vectors.
///
/// For the matrix `A`, the basis `Q` so far and its next block `N` it holds that `A Q = Q T + N C` with `C` zero but for its last
/// columns, up to the rounding of the products.
pub(super) struct Lanczos<'a> {
    len: usize,
    /// Orthonormal vectors that the basis is kept orthogonal to.
    locked: &'a [f64],
    /// The basis and its next block, one vector after the other.
    basis: Vec<f64>,
    /// `T`, of which the first [`Self::size`] columns are filled.
    projected: Mat<f64>,
    size: usize,
    /// The last columns of `C`: the triangular factor of the next block.
    coupling: [[f64; BLOCK]; BLOCK],
    /// The largest `||A q||` so far.
    largest: f64,
    start_norm: f64,
    rng: TorchRng,
    /// Whether threads share the work.
    shared: bool,
}

impl<'a> Lanczos<'a> {
    /// An iteration over vectors of `len`, started with a block of normal numbers. Threads share the work if `shared`.
    pub(super) fn new(len: usize, locked: &'a [f64], seed: u64, shared: bool) -> Self {
        let mut rng = TorchRng::new(seed).with_arithmetic(Arithmetic::Scalar);
        let start: Vec<f64> = rng.normal(0.0, 1.0, BLOCK * len).into_iter().map(f64::from).collect();
        let start_norm = norm(&start);
        let mut new = Self {
            len,
            locked,
            basis: vec![],
            projected: Mat::new(),
            size: 0,
            coupling: [[0.0; BLOCK]; BLOCK],
            largest: 0.0,
            start_norm,
            rng,
            shared,
        };
        new.append(start);
        new
    }

    /// The dimension of the space.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The Frobenius norm of the start block before it was made orthonormal.
    pub(super) fn start_norm(&self) -> f64 {
        self.start_norm
    }

    /// The inner products of the basis with vectors, `(size, vectors)`.
    pub(super) fn coordinates(&self, vectors: &[f64]) -> Vec<f64> {
        let mut coordinates = vec![0.0; self.size * (vectors.len() / self.len)];
        dot(&self.basis[..self.size * self.len], vectors, self.len, &mut coordinates);
        coordinates
    }

    /// The vectors with these coordinates, one after the other.
    pub(super) fn combine(&self, coordinates: &[f64]) -> Vec<f64> {
        let mut vectors = vec![0.0; coordinates.len() / self.size * self.len];
        add_multiples(&self.basis[..self.size * self.len], coordinates, self.len, &mut vectors);
        vectors
    }

    /// Grows the space by a block: `product` multiplies a block with the matrix.
    pub(super) fn extend(&mut self, product: impl Fn(&[f64]) -> Vec<f64>) {
        let next = product(&self.basis[self.size * self.len..]);
        let (from, to) = (self.size, self.size + BLOCK);
        // What the block before left over is the coupling to this one.
        let coupling = self.coupling;
        let coefficients = self.append(next);
        self.projected.resize_with(to, to, |_, _| 0.0);
        for j in 0..BLOCK {
            for i in 0..to {
                self.projected[(i, from + j)] = coefficients[i * BLOCK + j];
            }
            for (i, row) in coupling.iter().enumerate().filter(|_| from > 0) {
                self.projected[(from + i, from - BLOCK + j)] = row[j];
            }
        }
        self.size = to;
    }

    /// The best approximations of eigenpairs in the space.
    ///
    /// # Errors
    /// When the small eigenvalue problem is not solved.
    pub(super) fn ritz(&self) -> Result<Ritz> {
        Ritz::new(&self.projected, &self.coupling)
    }

    /// Orthonormalises a block, appends it to the basis, and returns its coefficients in the basis before.
    fn append(&mut self, mut block: Vec<f64>) -> Vec<f64> {
        let lengths: Vec<f64> = block.chunks(self.len).map(norm).collect();
        self.largest = lengths.iter().copied().fold(self.largest, f64::max);
        let coefficients = self.orthogonalise(&mut block);
        self.coupling = [[0.0; BLOCK]; BLOCK];
        for (j, before) in lengths.into_iter().enumerate() {
            let (done, rest) = block.split_at_mut(j * self.len);
            let vector = &mut rest[..self.len];
            for i in 0..j {
                self.coupling[i][j] = project_out(vector, &done[i * self.len..][..self.len]);
            }
            if norm(vector) < CANCELLED * before {
                self.clean(vector, done);
            }
            self.coupling[j][j] = norm(vector);
            if self.coupling[j][j] <= VANISHED * self.largest {
                // The space is invariant: anything orthogonal to it continues the iteration.
                self.coupling[j][j] = 0.0;
                vector.copy_from_slice(&self.random());
                self.clean(vector, done);
            }
            let length = norm(vector);
            vector.iter_mut().for_each(|v| *v /= length);
        }
        self.basis.extend_from_slice(&block);
        coefficients
    }

    /// Subtracts the projections on locked vectors and on the basis; returns the latter's coefficients.
    ///
    /// A product is almost all in the span of the last two blocks. That part goes first: what one pass over the whole basis leaves is
    /// the basis's own lack of orthogonality times what was subtracted, and would grow from block to block if that were large.
    fn orthogonalise(&self, block: &mut [f64]) -> Vec<f64> {
        let recent = self.basis.len().saturating_sub(2 * BLOCK * self.len);
        let first = subtract_projections(&self.basis[recent..], self.len, block, self.shared);
        subtract_projections(self.locked, self.len, block, self.shared);
        let mut coefficients = subtract_projections(&self.basis, self.len, block, self.shared);
        let recent = coefficients.len() - first.len();
        coefficients[recent..].iter_mut().zip(first).for_each(|(sum, first)| *sum += first);
        coefficients
    }

    /// Orthogonalises a vector against everything there is.
    fn clean(&self, vector: &mut [f64], block: &[f64]) {
        for _ in 0..2 {
            self.orthogonalise(vector);
            for other in block.chunks(self.len) {
                project_out(vector, other);
            }
        }
    }

    fn random(&mut self) -> Vec<f64> {
        self.rng.normal(0.0, 1.0, self.len).into_iter().map(f64::from).collect()
    }
}

/// Subtracts from each vector of a block its projections on orthonormal vectors; returns the coefficients, `(basis, block)`.
///
/// If `shared`, threads share the work on a large basis; that changes no bit of the result.
pub(super) fn subtract_projections(basis: &[f64], len: usize, block: &mut [f64], shared: bool) -> Vec<f64> {
    let count = block.len() / len;
    let mut coefficients = vec![0.0; basis.len() / len * count];
    if !shared || basis.len() < SHARED {
        dot(basis, block, len, &mut coefficients);
        let negated: Vec<f64> = coefficients.iter().map(|c| -c).collect();
        add_multiples(basis, &negated, len, block);
        return coefficients;
    }
    let (vectors, numbers) = PIECE;
    let pieces = basis.par_chunks(vectors * len).zip(coefficients.par_chunks_mut(vectors * count));
    pieces.for_each(|(basis, coefficients)| dot(basis, block, len, coefficients));
    let negated: Vec<f64> = coefficients.iter().map(|c| -c).collect();
    let part = |from: usize| {
        let to = len.min(from + numbers);
        let mut part: Vec<f64> = block.chunks(len).flat_map(|vector| &vector[from..to]).copied().collect();
        add_multiples_of_parts(&basis[from..], len, &negated, to - from, &mut part);
        part
    };
    let parts: Vec<Vec<f64>> = (0..len).step_by(numbers).collect::<Vec<_>>().into_par_iter().map(part).collect();
    for (from, part) in (0..len).step_by(numbers).zip(parts) {
        let width = part.len() / count;
        for (vector, part) in block.chunks_mut(len).zip(part.chunks(width)) {
            vector[from..from + width].copy_from_slice(part);
        }
    }
    coefficients
}

/// Subtracts the projection on a unit vector and returns its length.
fn project_out(vector: &mut [f64], unit: &[f64]) -> f64 {
    let mut length = [0.0];
    dot(unit, vector, unit.len(), &mut length);
    add_multiples(unit, &[-length[0]], unit.len(), vector);
    length[0]
}
