//! Singular triplets as they are handed out, and how well they fit the weight.

use super::kernel::{dot, norm};
use super::panel::Panel;
use faer::MatRef;

/// Singular triplets with vectors of f32 numbers, held in f64: one vector after the other.
pub(super) struct Triplets {
    pub(super) u: Vec<f64>,
    /// Not rounded.
    pub(super) s: Vec<f64>,
    pub(super) v: Vec<f64>,
}

/// What a check of triplets against the weight found; the norms are parts of the largest singular value.
pub(super) struct Fit {
    /// `||W v - s u||` of each triplet.
    pub(super) left: Vec<f64>,
    /// `||W^T u - s v||` of each triplet.
    pub(super) right: Vec<f64>,
    /// The vectors `W^T u - s v`, one after the other.
    pub(super) residuals: Vec<f64>,
    /// The largest element of `U^T U - I` and `V^T V - I`.
    pub(super) orthogonality: f64,
}

impl Triplets {
    /// The first triplets of a decomposition whose vectors are columns: rounded, and with their signs settled.
    pub(super) fn new(u: MatRef<'_, f64>, s: &[f64], v: MatRef<'_, f64>, count: usize) -> Self {
        let rounded = |matrix: MatRef<'_, f64>, j: usize| -> Vec<f64> {
            (0..matrix.nrows()).map(|i| f64::from(matrix[(i, j)] as f32)).collect()
        };
        let mut new = Self { u: vec![], s: s[..count].to_vec(), v: vec![] };
        for j in 0..count {
            let (u, v) = (rounded(u, j), rounded(v, j));
            let sign = sign_of_largest(&u);
            new.u.extend(u.iter().map(|x| x * sign));
            new.v.extend(v.iter().map(|x| x * sign));
        }
        new
    }

    /// Those of the transposed weight, with signs settled by the vectors that are the left ones then.
    pub(super) fn turned(self) -> Self {
        let Self { u: mut v, s, v: mut u } = self;
        let (rows, cols) = (u.len() / s.len(), v.len() / s.len());
        for (u, v) in u.chunks_mut(rows).zip(v.chunks_mut(cols)) {
            let sign = sign_of_largest(u);
            u.iter_mut().chain(v).for_each(|x| *x *= sign);
        }
        Self { u, s, v }
    }

    /// Compares with the weight, in f64.
    pub(super) fn fit(&self, panel: &Panel<'_>) -> Fit {
        let count = self.s.len();
        let unit = if self.s[0] > 0.0 { self.s[0] } else { 1.0 };
        let products = panel.times(&self.v);
        let left = (0..count).map(|j| {
            let u = &self.u[j * panel.rows..(j + 1) * panel.rows];
            let difference: Vec<f64> = (0..panel.rows).map(|i| products[i * count + j] - self.s[j] * u[i]).collect();
            norm(&difference) / unit
        });
        let by_rows: Vec<f64> =
            (0..panel.rows).flat_map(|i| (0..count).map(move |j| self.u[j * panel.rows + i])).collect();
        let mut residuals = panel.transposed_times(&by_rows);
        for ((residual, v), s) in residuals.chunks_mut(panel.cols).zip(self.v.chunks(panel.cols)).zip(&self.s) {
            residual.iter_mut().zip(v).for_each(|(residual, v)| *residual -= s * v);
        }
        Fit {
            left: left.collect(),
            right: residuals.chunks(panel.cols).map(|residual| norm(residual) / unit).collect(),
            residuals,
            orthogonality: orthogonality(&self.u, panel.rows).max(orthogonality(&self.v, panel.cols)),
        }
    }
}

impl Fit {
    /// The largest residual.
    pub(super) fn worst(&self) -> f64 {
        self.left.iter().chain(&self.right).copied().fold(0.0, f64::max)
    }
}

/// The sign of the entry of largest magnitude, of the first of them on a tie.
fn sign_of_largest(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0f64, |largest, v| if v.abs() > largest.abs() { *v } else { largest });
    if largest < 0.0 { -1.0 } else { 1.0 }
}

/// By how much the inner products of vectors differ from those of orthonormal ones.
fn orthogonality(vectors: &[f64], len: usize) -> f64 {
    let count = vectors.len() / len;
    let mut products = vec![0.0; count * count];
    dot(vectors, vectors, len, &mut products);
    for i in 0..count {
        products[i * count + i] -= 1.0;
    }
    products.into_iter().fold(0.0, |worst, v| worst.max(v.abs()))
}
