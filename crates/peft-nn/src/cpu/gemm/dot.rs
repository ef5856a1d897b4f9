//! The innermost product of rows with rows: the terms of a sum lie side by side in both, and so they are read.

use pulp::Simd;

/// Partial sums of an element: terms are added up in order with those whose places are equal modulo this, and the sums then in halves.
pub(super) const LANES: usize = 16;

/// Some rows, as they lie in memory.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub(super) data: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
}

impl Lines<'_> {
    fn has(&self, rows: usize, depth: usize) -> bool {
        rows == 0 || self.data.len() >= (rows - 1) * self.stride + depth
    }
}

/// Adds `x[j] w[i]` to `sums[j * stride + i]`, for `rows` rows of `w` and `tokens` rows of `x` of `depth` elements.
///
/// The bits of an element depend neither on `rows` and `tokens` nor on how long registers are. `P` is the number of registers that
/// [`LANES`] numbers fill.
#[inline(always)]
pub(super) fn dots<S: Simd, const P: usize>(
    simd: S,
    (rows, tokens, depth): (usize, usize, usize),
    w: Lines<'_>,
    x: Lines<'_>,
    sums: &mut [f32],
    stride: usize,
) {
    if rows == 0 || tokens == 0 {
        return;
    }
    assert!(w.has(rows, depth) && x.has(tokens, depth));
    assert!(sums.len() >= (tokens - 1) * stride + rows);
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        // SAFETY: the assertions above; a tile has no more rows and tokens than are left.
        row += unsafe {
            match P {
                // One row after another: a single token takes as long as reading them, and memory is fastest in order.
                _ if tokens == 1 => one::<S, P>(simd, row, depth, w, x, sums),
                1 if left >= 4 => strip::<S, P, 4, 6>(simd, row, tokens, depth, w, x, sums, stride),
                _ if left >= 2 => strip::<S, P, 2, 3>(simd, row, tokens, depth, w, x, sums, stride),
                _ => strip::<S, P, 1, 3>(simd, row, tokens, depth, w, x, sums, stride),
            }
        };
    }
}

/// A row and the only token; returns 1.
///
/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn one<S: Simd, const P: usize>(
    simd: S,
    row: usize,
    depth: usize,
    w: Lines<'_>,
    x: Lines<'_>,
    sums: &mut [f32],
) -> usize {
    // SAFETY: the caller's promise.
    let [[sum]] =
        unsafe { tile::<S, P, 1, 1>(simd, depth, w.data.as_ptr().add(row * w.stride), 0, x.data.as_ptr(), 0) };
    sums[row] += sum;
    1
}

/// Rows `row..row + R` and all tokens; returns `R`.
///
/// # Safety
/// `w` has these rows and `x` this number of tokens, `depth` elements each.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn strip<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    row: usize,
    tokens: usize,
    depth: usize,
    w: Lines<'_>,
    x: Lines<'_>,
    sums: &mut [f32],
    stride: usize,
) -> usize {
    let mut token = 0;
    while token < tokens {
        // SAFETY: the caller's promise; a tile has no more tokens than are left.
        unsafe {
            let w = (w.data.as_ptr().add(row * w.stride), w.stride);
            let first = (x.data.as_ptr().add(token * x.stride), x.stride);
            let sums = &mut sums[token * stride + row..];
            token += match tokens - token {
                left if left >= C => add::<S, P, R, C>(simd, depth, w, first, sums, stride),
                2.. => add::<S, P, R, 2>(simd, depth, w, first, sums, stride),
                _ => add::<S, P, R, 1>(simd, depth, w, first, sums, stride),
            }
        }
    }
    R
}

/// Adds one tile; returns `C`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    depth: usize,
    (w, w_stride): (*const f32, usize),
    (x, x_stride): (*const f32, usize),
    sums: &mut [f32],
    stride: usize,
) -> usize {
    // SAFETY: the caller's promise.
    let tile = unsafe { tile::<S, P, R, C>(simd, depth, w, w_stride, x, x_stride) };
    for (j, tile) in tile.iter().enumerate() {
        for (sum, tile) in sums[j * stride..][..R].iter_mut().zip(tile) {
            *sum += tile;
        }
    }
    C
}

/// The products of `R` rows with `C` tokens, token by token.
///
/// # Safety
/// `depth` elements can be read of each of the rows, which are `w_stride` and `x_stride` apart.
#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    depth: usize,
    w: *const f32,
    w_stride: usize,
    x: *const f32,
    x_stride: usize,
) -> [[f32; R]; C] {
    let lanes = S::F32_LANES;
    let mut sums = [[[simd.splat_f32s(0.0); P]; R]; C];
    let full = depth / LANES * LANES;
    for k in (0..full).step_by(LANES) {
        for p in 0..P {
            let at = k + p * lanes;
            let mut left = [simd.splat_f32s(0.0); R];
            for (i, left) in left.iter_mut().enumerate() {
                // SAFETY: the caller's promise; registers may be read from any address.
                *left = unsafe { w.add(i.wrapping_mul(w_stride)).add(at).cast::<S::f32s>().read_unaligned() };
            }
            for (j, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let right = unsafe { x.add(j.wrapping_mul(x_stride)).add(at).cast::<S::f32s>().read_unaligned() };
                for (sums, &left) in sums.iter_mut().zip(&left) {
                    sums[p] = simd.mul_add_e_f32s(left, right, sums[p]);
                }
            }
        }
    }
    if full < depth {
        for p in 0..P {
            let at = full + p * lanes;
            let count = lanes.min(depth.saturating_sub(at));
            if count == 0 {
                break;
            }
            for (j, sums) in sums.iter_mut().enumerate() {
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: so many elements are left of both rows. Zeros behind them add nothing.
                    let [left, right] = unsafe {
                        [w.add(i * w_stride + at), x.add(j * x_stride + at)]
                            .map(|rest| simd.partial_load_f32s(std::slice::from_raw_parts(rest, count)))
                    };
                    sums[p] = simd.mul_add_e_f32s(left, right, sums[p]);
                }
            }
        }
    }
    added::<S, P, R, C>(simd, sums)
}

/// The sums of the lanes, in halves.
#[inline(always)]
fn added<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    mut sums: [[[S::f32s; P]; R]; C],
) -> [[f32; R]; C] {
    let mut out = [[0.0; R]; C];
    #[cfg(target_arch = "x86_64")]
    if P == 1 && R == 4 && C == 6 && std::any::TypeId::of::<S>() == std::any::TypeId::of::<pulp::x86::V4>() {
        // SAFETY: V4 says that the processor has these instructions.
        unsafe { avx512::added(sums.as_ptr().cast(), out.as_mut_ptr().cast()) };
        return out;
    }
    for (sums, out) in sums.iter_mut().zip(&mut out) {
        for (sums, out) in sums.iter_mut().zip(out) {
            let mut half = P / 2;
            while half > 0 {
                for i in 0..half {
                    sums[i] = simd.add_f32s(sums[i], sums[i + half]);
                }
                half /= 2;
            }
            *out = simd.reduce_sum_f32s(sums[0]);
        }
    }
    out
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_setzero_ps, _mm512_shuffle_f32x4,
        _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpacklo_pd,
    };

    /// The sums of the lanes of 24 registers, in halves: of eight or sixteen registers at a time, so that no lane is idle.
    ///
    /// # Safety
    /// There are 24 registers and 24 numbers, and the processor has AVX-512.
    #[inline(always)]
    pub(super) unsafe fn added(sums: *const __m512, out: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut first = [_mm512_setzero_ps(); 16];
            let mut rest = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                first[PLACES[i]] = sums.add(i).read();
                if i < 8 {
                    rest[PLACES[i]] = sums.add(16 + i).read();
                }
            }
            _mm512_storeu_ps(out, sixteen(first));
            let mut last = [0.0; 16];
            _mm512_storeu_ps(last.as_mut_ptr(), sixteen(rest));
            std::ptr::copy_nonoverlapping(last.as_ptr(), out.add(16), 8);
        }
    }

    /// Which of the registers of [`sixteen`] has its sum at each place.
    const PLACES: [usize; 16] = [0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15];

    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn sixteen(a: [__m512; 16]) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = _mm512_setzero_ps();
            let (mut eight, mut four, mut two) = ([zero; 8], [zero; 4], [zero; 2]);
            for i in 0..8 {
                let (low, high) =
                    (_mm512_shuffle_f32x4::<0x44>(a[i], a[i + 8]), _mm512_shuffle_f32x4::<0xee>(a[i], a[i + 8]));
                eight[i] = _mm512_add_ps(low, high);
            }
            for i in 0..4 {
                let (x, y) = (eight[i], eight[i + 4]);
                four[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y));
            }
            for i in 0..2 {
                let (x, y) = (_mm512_castps_pd(four[i]), _mm512_castps_pd(four[i + 2]));
                let (low, high) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
                two[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            }
            let [x, y] = two;
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(x, y), _mm512_shuffle_ps::<0xdd>(x, y))
        }
    }
}
