//! Panels: the right side of a product, laid out so that it is read from the first element to the last.

use super::matrix::Matrix;
use super::scratch::Scratch;
use super::tile::panel_width;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that are transposed together: their parts of a cache line are all in the first-level cache.
const RUN: usize = 16;

/// A matrix `(depth, columns)` as panels `(depth, width)` of neighbouring columns, one after another, zeros after the last column.
pub(crate) struct Panels {
    data: Scratch,
    pub(crate) depth: usize,
    pub(crate) columns: usize,
    /// Registers across a panel.
    pub(crate) vectors: usize,
    pub(crate) width: usize,
}

impl Panels {
    pub(crate) fn pack(matrix: Matrix<'_>, parallel: bool) -> Self {
        let (vectors, width) = pulp::Arch::new().dispatch(Widths { columns: matrix.columns });
        let (depth, columns) = (matrix.rows, matrix.columns);
        let mut data = Scratch::new(columns.div_ceil(width) * depth * width);
        if depth > 0 && columns > 0 {
            let pack = |(index, panel): (usize, &mut [f32])| {
                let columns = index * width..columns.min((index + 1) * width);
                pulp::Arch::new().dispatch(Pack { matrix, rows: 0..depth, columns, width, panel });
            };
            if parallel {
                data.par_chunks_mut(depth * width).enumerate().for_each(pack);
            } else {
                data.chunks_mut(depth * width).enumerate().for_each(pack);
            }
        }
        Self { data, depth, columns, vectors, width }
    }

    /// The first column.
    pub(super) fn first_column(&self) -> Vec<f32> {
        self.data.chunks_exact(self.width).take(self.depth).filter_map(|row| row.first().copied()).collect()
    }

    /// The rows from `from` on of one panel.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize, from: usize) -> &[f32] {
        &self.data[index * self.depth * self.width..][..self.depth * self.width][from * self.width..]
    }
}

/// Panels as wide as two registers; as one where there are few columns.
pub(crate) struct Widths {
    pub(crate) columns: usize,
}

impl WithSimd for Widths {
    type Output = (usize, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
        let vectors = if self.columns <= panel_width::<S>(1) { 1 } else { 2 };
        (vectors, panel_width::<S>(vectors))
    }
}

/// Lays out some rows of one panel.
pub(crate) struct Pack<'a> {
    pub(crate) matrix: Matrix<'a>,
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) columns: std::ops::Range<usize>,
    pub(crate) width: usize,
    pub(crate) panel: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { matrix, rows, columns, width, panel } = self;
        let used = columns.len();
        if !matrix.is_column_major() {
            for (k, out) in rows.zip(panel.chunks_exact_mut(width)) {
                matrix.read_row(k, columns.start, &mut out[..used]);
                out[used..].fill(0.0);
            }
            return;
        }
        let mut run = [[0.0f32; RUN]; RUN];
        let depth = rows.len();
        for k in (0..depth).step_by(RUN) {
            let deep = RUN.min(depth - k);
            for first in (0..width).step_by(RUN) {
                let wide = RUN.min(width - first);
                for (j, run) in run.iter_mut().enumerate().take(wide) {
                    let column = columns.start + first + j;
                    if column < columns.end {
                        matrix.read_column(rows.start + k, column, &mut run[..deep]);
                    } else {
                        run.fill(0.0);
                    }
                }
                for i in 0..deep {
                    let out = &mut panel[(k + i) * width + first..][..wide];
                    for (j, out) in out.iter_mut().enumerate() {
                        *out = run[j][i];
                    }
                }
            }
        }
    }
}
