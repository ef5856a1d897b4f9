//! Matrices laid out for the products.
//!
//! A panel is some neighbouring columns of a matrix, `(rows, panel width)`, and read from the first element to the last.
//! The last panel may be a unit wide.

use pulp::Simd;

use super::arithmetic::Arithmetic;

/// Panels of the transpose of `rows` rows of `width` elements, zeros after the last row. `load(row, out)` reads a row.
#[inline(always)]
pub(super) fn transposed<A: Arithmetic, S: Simd>(
    _: S,
    rows: usize,
    width: usize,
    panels: &mut [A],
    mut load: impl FnMut(usize, &mut [A]),
) {
    let tiles = A::tiles::<S>();
    let columns = tiles.padded(rows);
    // A register's worth of rows at a time.
    let mut run = A::buffer(tiles.unit * width);
    for first in (0..columns).step_by(tiles.unit) {
        for (j, row) in run.chunks_exact_mut(width.max(1)).enumerate() {
            if first + j < rows { load(first + j, row) } else { row.fill(A::zero()) }
        }
        let start = first - first % tiles.panel;
        let panel_width = tiles.panel.min(columns - start);
        let panel = &mut panels[start * width..][..panel_width * width];
        for (i, out) in panel.chunks_exact_mut(panel_width).enumerate() {
            for (j, out) in out[first - start..][..tiles.unit].iter_mut().enumerate() {
                *out = run[j * width + i];
            }
        }
    }
}

/// Panels of `rows` rows of `width` elements, zeros after the last column.
#[inline(always)]
pub(super) fn straight<A: Arithmetic, S: Simd>(
    _: S,
    rows: usize,
    width: usize,
    panels: &mut [A],
    mut load: impl FnMut(usize, &mut [A]),
) {
    let tiles = A::tiles::<S>();
    let columns = tiles.padded(width);
    let mut row = A::buffer(columns);
    row.fill(A::zero());
    for i in 0..rows {
        load(i, &mut row[..width]);
        lay_out::<A, S>(&row, i, rows, panels);
    }
}

/// Row `i` of the panels of a matrix with `rows` rows.
#[inline(always)]
pub(super) fn lay_out<A: Arithmetic, S: Simd>(row: &[A], i: usize, rows: usize, panels: &mut [A]) {
    let tiles = A::tiles::<S>();
    let mut whole = row.chunks_exact(tiles.panel);
    let mut start = 0;
    for part in &mut whole {
        panels[start + i * tiles.panel..][..tiles.panel].copy_from_slice(part);
        start += rows * tiles.panel;
    }
    if !whole.remainder().is_empty() {
        panels[start + i * tiles.unit..][..tiles.unit].copy_from_slice(whole.remainder());
    }
}
