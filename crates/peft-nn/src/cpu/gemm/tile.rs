//! The innermost product: a few rows times one panel, held in registers.

use pulp::Simd;

/// Columns of a panel: `vectors` registers of f32, of which there are one or two.
pub(crate) const fn panel_width<S: Simd>(vectors: usize) -> usize {
    vectors * S::F32_LANES
}

/// Rows that the accumulators of a tile leave registers for.
pub(crate) const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
}

/// A matrix of f32 that is read element by element, with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    /// From one row to the next.
    pub(crate) row: usize,
    /// From one element of a row to the next.
    pub(crate) depth: usize,
}

/// Where a product goes: rows of `columns` elements, `stride` apart.
pub(crate) struct Destination<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    /// At most the width of the panel.
    pub(crate) columns: usize,
    /// Adds to what is there.
    pub(crate) add: bool,
}

/// `destination[i][j] = sum_k lhs[i][k] panel[k][j]` for any number of rows.
///
/// A panel is `(depth, width)`, row by row, `width` as [`panel_width`] says. The terms of every element are added in the order of k,
/// each with one rounding where the processor multiplies and adds in one step: neither the number of lanes nor the tiling shows in the
/// bits.
#[inline(always)]
pub(crate) fn panel_product<S: Simd, const V: usize>(
    simd: S,
    rows: usize,
    depth: usize,
    lhs: Strided<'_>,
    panel: &[f32],
    destination: &mut Destination<'_>,
) {
    let width = panel_width::<S>(V);
    if rows == 0 || destination.columns == 0 {
        return;
    }
    assert!(destination.columns <= width && panel.len() >= depth * width);
    assert!(depth == 0 || lhs.data.len() > (rows - 1) * lhs.row + (depth - 1) * lhs.depth);
    assert!(destination.data.len() >= (rows - 1) * destination.stride + destination.columns);
    let mut row = 0;
    while row < rows {
        // SAFETY: the assertions above cover all rows, of which `row` and those of the tile are some.
        unsafe {
            row += match (rows - row, tile_rows::<S>()) {
                (12.., 12) => tile::<S, 12, V>(simd, row, depth, lhs, panel, destination),
                (8.., 12) => tile::<S, 8, V>(simd, row, depth, lhs, panel, destination),
                (6.., 6) => tile::<S, 6, V>(simd, row, depth, lhs, panel, destination),
                (4.., _) => tile::<S, 4, V>(simd, row, depth, lhs, panel, destination),
                (2.., _) => tile::<S, 2, V>(simd, row, depth, lhs, panel, destination),
                _ => tile::<S, 1, V>(simd, row, depth, lhs, panel, destination),
            };
        }
    }
}

/// Rows `row..row + R`; returns `R`.
///
/// # Safety
/// `lhs`, `panel` and `destination` have these rows, `depth` and columns.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    row: usize,
    depth: usize,
    lhs: Strided<'_>,
    panel: &[f32],
    destination: &mut Destination<'_>,
) -> usize {
    let lanes = S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    // SAFETY: the caller's promise; registers may be read from any address.
    unsafe {
        let mut left = lhs.data.as_ptr().add(row * lhs.row);
        let mut right = panel.as_ptr();
        for _ in 0..depth {
            let mut columns = [simd.splat_f32s(0.0); V];
            for (v, register) in columns.iter_mut().enumerate() {
                *register = right.add(v * lanes).cast::<S::f32s>().read_unaligned();
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // Wrapping, for no check should stand between the additions; the assertions of the caller are enough.
                let factor = simd.splat_f32s(*left.add(i.wrapping_mul(lhs.row)));
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.mul_add_e_f32s(factor, column, *sum);
                }
            }
            left = left.wrapping_add(lhs.depth);
            right = right.wrapping_add(V * lanes);
        }
        let out = destination.data.as_mut_ptr().add(row * destination.stride);
        for (i, sums) in sums.iter().enumerate() {
            let out = out.add(i * destination.stride);
            if destination.columns == V * lanes {
                for (v, &sum) in sums.iter().enumerate() {
                    let out = out.add(v * lanes).cast::<S::f32s>();
                    let sum = if destination.add { simd.add_f32s(out.read_unaligned(), sum) } else { sum };
                    out.write_unaligned(sum);
                }
            } else {
                let sums = std::slice::from_raw_parts(sums.as_ptr().cast::<f32>(), V * lanes);
                for (j, &sum) in sums.iter().enumerate().take(destination.columns) {
                    *out.add(j) = if destination.add { *out.add(j) + sum } else { sum };
                }
            }
        }
    }
    R
}
