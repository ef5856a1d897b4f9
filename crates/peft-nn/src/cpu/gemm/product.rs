//! Whole products, on all threads.

use super::DEPTH;
use super::matrix::Matrix;
use super::pack::{Pack, Panels, Widths};
use super::row_product::row_product;
use super::scratch::Scratch;
use super::tile::{Destination, Strided, panel_product, tile_rows};
use crate::cpu::Element;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of the stationary side that one task multiplies with all panels, so that they are read from memory once.
const ROWS: usize = 48;
/// Panels that one task keeps in the second-level cache.
const PANELS: usize = 4;
/// Multiply-adds below which one thread is enough.
pub(super) const SMALL: usize = 1 << 17;

/// Units of a task: so few that each thread has two tasks, where there are so many units, and no more than `most`.
fn pieces(units: usize, most: usize) -> usize {
    let wanted = units.div_ceil(2 * rayon::current_num_threads()).max(1);
    wanted.min(most)
}

/// A pointer that tasks write disjoint elements through.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T, usize);

// SAFETY: the tasks that hold it write different elements, and nobody reads them meanwhile.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn of(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    /// # Safety
    /// No other part that exists at the same time overlaps with this one.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: within the slice this was made of; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// `x w^T` for the panels of `x^T` and rows of `w`: one term of [`product_by_rows`].
pub(crate) struct ByRows<'a> {
    /// `(depth, tokens)`.
    pub(crate) x: &'a Panels,
    /// `(n, depth)`.
    pub(crate) w: Matrix<'a>,
}

/// `out (tokens, n) = sum over the terms of x w^T, + bias`.
pub(crate) fn product_by_rows<T: Element<Acc = f32>>(
    out: &mut [T],
    n: usize,
    terms: &[ByRows<'_>],
    bias: Option<&[T]>,
) {
    let Some(tokens) = terms.first().map(|term| term.x.columns).filter(|_| n > 0) else { return };
    assert!(out.len() >= tokens * n && bias.is_none_or(|bias| bias.len() >= n));
    assert!(terms.iter().all(|term| term.x.columns == tokens && term.w.rows == n && term.w.columns == term.x.depth));
    if terms.iter().all(|term| term.x.depth == 0) {
        for row in out[..tokens * n].chunks_exact_mut(n) {
            row.iter_mut().enumerate().for_each(|(i, out)| *out = bias.map_or(T::zero(), |bias| bias[i]));
        }
        return;
    }
    if tokens == 1 && terms.iter().all(|term| !term.w.is_column_major()) {
        let xs: Vec<Vec<f32>> = terms.iter().map(|term| term.x.first_column()).collect();
        let terms: Vec<_> = xs.iter().zip(terms).map(|(x, term)| (Matrix::of(x, 1, x.len()), term.w)).collect();
        return row_product(&mut out[..n], n, &terms, bias);
    }
    let width = terms.first().map_or(1, |term| term.x.width);
    let work = tokens * n * terms.iter().map(|term| term.x.depth).sum::<usize>();
    let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
    let rows = if threads == 1 { ROWS } else { ROWS.min(n.div_ceil(2 * threads).next_multiple_of(12)) };
    let out = Shared::of(&mut out[..tokens * n]);
    let groups = tokens.div_ceil(width).div_ceil(PANELS);
    // Few rows: the tokens are split among the threads instead.
    let splits = if n.div_ceil(rows) >= threads { 1 } else { groups.min(2 * threads) };
    let task = |index: usize| {
        let first = index / splits * rows;
        let split = index % splits;
        let groups = split * groups / splits..(split + 1) * groups / splits;
        Arch::new().dispatch(RowsTask { terms, bias, out, n, rows: first..n.min(first + rows), groups, tokens });
    };
    let count = n.div_ceil(rows) * splits;
    if threads == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

struct RowsTask<'a, T> {
    terms: &'a [ByRows<'a>],
    bias: Option<&'a [T]>,
    out: Shared<T>,
    n: usize,
    rows: Range<usize>,
    /// Groups of [`PANELS`] panels.
    groups: Range<usize>,
    tokens: usize,
}

impl<T: Element<Acc = f32>> WithSimd for RowsTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.terms.first().map(|term| term.x.vectors) {
            Some(1) => self.run::<S, 1>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl<T: Element<Acc = f32>> RowsTask<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { terms, bias, out, n, rows, groups, tokens } = self;
        let width = V * S::F32_LANES;
        let stride = PANELS * width;
        let height = tile_rows::<S>();
        // (rows, tokens of a group): the product transposed, as the tiles make it.
        let mut sums = Scratch::new(rows.len() * stride);
        let mut widened = Scratch::new(height * DEPTH);
        for group in groups {
            let panels = group * PANELS..tokens.div_ceil(width).min((group + 1) * PANELS);
            let mut add = false;
            for term in terms {
                let depth = term.x.depth;
                for k in (0..depth).step_by(DEPTH) {
                    let deep = DEPTH.min(depth - k);
                    for first in rows.clone().step_by(height) {
                        let count = height.min(rows.end - first);
                        let lhs = left(&term.w, first, count, k, deep, &mut widened);
                        for panel in panels.clone() {
                            let data = &mut sums[(first - rows.start) * stride + (panel - panels.start) * width..];
                            let mut to = Destination { data, stride, columns: width, add };
                            panel_product::<S, V>(simd, count, deep, lhs, term.x.panel(panel, k), &mut to);
                        }
                    }
                    add = true;
                }
            }
            let tokens = panels.start * width..tokens.min(panels.end * width);
            for (t, token) in tokens.enumerate() {
                // SAFETY: other tasks have other rows or other tokens.
                let out = unsafe { out.part(token * n + rows.start..token * n + rows.end) };
                for (i, out) in out.iter_mut().enumerate() {
                    let bias = bias.map_or(0.0, |bias| bias[rows.start + i].widen());
                    *out = T::narrow(sums[i * stride + t] + bias);
                }
            }
        }
    }
}

/// Rows of the left side as f32, with contiguous terms: themselves or a widened copy.
#[inline(always)]
fn left<'a>(
    matrix: &Matrix<'a>,
    first: usize,
    count: usize,
    k: usize,
    deep: usize,
    widened: &'a mut [f32],
) -> Strided<'a> {
    if let Some((data, row, depth)) = matrix.as_f32() {
        return Strided { data: &data[first * row + k * depth..], row, depth };
    }
    if matrix.is_column_major() {
        let mut column = [0.0; 16];
        for j in 0..deep {
            matrix.read_column(first, k + j, &mut column[..count]);
            for (i, &value) in column[..count].iter().enumerate() {
                widened[i * deep + j] = value;
            }
        }
    } else {
        for (i, row) in widened.chunks_exact_mut(deep).enumerate().take(count) {
            matrix.read_row(first + i, k, row);
        }
    }
    Strided { data: widened, row: deep, depth: 1 }
}

/// `out (rows, columns) = sum over the terms of lhs rhs`, row by row.
pub(crate) fn product(out: &mut [f32], terms: &[(Matrix<'_>, Matrix<'_>)]) {
    let Some((rows, columns)) = terms.first().map(|(lhs, rhs)| (lhs.rows, rhs.columns)) else { return };
    assert!(out.len() >= rows * columns);
    assert!(terms.iter().all(|(lhs, rhs)| (lhs.rows, rhs.columns) == (rows, columns) && lhs.columns == rhs.rows));
    if rows == 0 || columns == 0 || terms.iter().all(|(lhs, _)| lhs.columns == 0) {
        return out[..rows * columns].fill(0.0);
    }
    let (vectors, width) = Arch::new().dispatch(Widths { columns });
    let work = rows * columns * terms.iter().map(|(lhs, _)| lhs.columns).sum::<usize>();
    let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
    let panels = columns.div_ceil(width);
    let per_task = if threads == 1 { PANELS } else { pieces(panels, PANELS) };
    let groups = panels.div_ceil(per_task);
    // Few columns: the rows are split among the threads instead, and each packs the panels for itself.
    let splits = if groups >= threads { 1 } else { rows.div_ceil(ROWS).min(2 * threads) };
    let out = Shared::of(&mut out[..rows * columns]);
    let task = |index: usize| {
        let (group, split) = (index / splits, index % splits);
        let panels = group * per_task..panels.min((group + 1) * per_task);
        let block = |split: usize| (split * rows / splits).next_multiple_of(12).min(rows);
        let rows = if split + 1 == splits { block(split)..rows } else { block(split)..block(split + 1) };
        Arch::new().dispatch(Task { terms, out, columns, rows, panels, vectors });
    };
    if threads == 1 {
        (0..groups * splits).for_each(task);
    } else {
        (0..groups * splits).into_par_iter().with_max_len(1).for_each(task);
    }
}

struct Task<'a> {
    terms: &'a [(Matrix<'a>, Matrix<'a>)],
    out: Shared<f32>,
    columns: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    vectors: usize,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.vectors == 1 { self.run::<S, 1>(simd) } else { self.run::<S, 2>(simd) }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { terms, out, columns, rows, panels, .. } = self;
        let width = V * S::F32_LANES;
        let height = tile_rows::<S>();
        let mut packed = Scratch::new(panels.len() * DEPTH * width);
        let mut widened = Scratch::new(height * DEPTH);
        let mut sums = Scratch::new(height * width);
        let mut add = false;
        for (lhs, rhs) in terms {
            let depth = lhs.columns;
            for k in (0..depth).step_by(DEPTH) {
                let deep = DEPTH.min(depth - k);
                for (panel, data) in panels.clone().zip(packed.chunks_exact_mut(deep * width)) {
                    let columns = panel * width..columns.min((panel + 1) * width);
                    Pack { matrix: *rhs, rows: k..k + deep, columns, width, panel: data }.with_simd(simd);
                }
                for first in rows.clone().step_by(height) {
                    let count = height.min(rows.end - first);
                    let lhs = left(lhs, first, count, k, deep, &mut widened);
                    for (panel, data) in panels.clone().zip(packed.chunks_exact(deep * width)) {
                        let start = panel * width;
                        let used = width.min(columns - start);
                        let mut to = Destination { data: &mut sums, stride: width, columns: width, add: false };
                        panel_product::<S, V>(simd, count, deep, lhs, data, &mut to);
                        for i in 0..count {
                            let at = (first + i) * columns + start;
                            // SAFETY: other tasks have other rows or other panels.
                            let out = unsafe { out.part(at..at + used) };
                            let sums = &sums[i * width..][..used];
                            if add {
                                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                            } else {
                                out.copy_from_slice(sums);
                            }
                        }
                    }
                }
                add = true;
            }
        }
    }
}
