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
                1 if left >= 6 => strip::<S, P, 6, 4>(simd, row, tokens, depth, w, x, sums, stride),
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
    // SAFETY: the caller's promise.
    unsafe {
        let sums = whole::<S, P, R, C>(simd, depth, w, w_stride, x, x_stride);
        let full = depth / LANES * LANES;
        if full == depth {
            return added::<S, P, R, C>(simd, sums);
        }
        let rest = depth - full;
        added::<S, P, R, C>(simd, with_rest(simd, sums, rest, w.add(full), w_stride, x.add(full), x_stride))
    }
}

/// The sums of each lane, but for terms that do not fill all [`LANES`].
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn whole<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    depth: usize,
    w: *const f32,
    w_stride: usize,
    x: *const f32,
    x_stride: usize,
) -> [[[S::f32s; P]; R]; C] {
    let mut sums = [[[simd.splat_f32s(0.0); P]; R]; C];
    for k in (0..depth / LANES * LANES).step_by(LANES) {
        for p in 0..P {
            let at = k + p * S::F32_LANES;
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
    sums
}

/// The sums with those terms. A function of its own: its loops would keep the others' sums in memory.
///
/// # Safety
/// `rest` elements can be read of each of the rows, fewer than [`LANES`].
#[inline(always)]
unsafe fn with_rest<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    mut sums: [[[S::f32s; P]; R]; C],
    rest: usize,
    w: *const f32,
    w_stride: usize,
    x: *const f32,
    x_stride: usize,
) -> [[[S::f32s; P]; R]; C] {
    for at in (0..rest).step_by(S::F32_LANES) {
        let (p, count) = (at / S::F32_LANES, S::F32_LANES.min(rest - at));
        for (j, sums) in sums.iter_mut().enumerate() {
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise. Zeros behind the elements add nothing.
                let (left, right) = unsafe {
                    let rest = |row: *const f32| simd.partial_load_f32s(std::slice::from_raw_parts(row.add(at), count));
                    (rest(w.add(i * w_stride)), rest(x.add(j * x_stride)))
                };
                sums[p] = simd.mul_add_e_f32s(left, right, sums[p]);
            }
        }
    }
    sums
}

/// The sums of the lanes, in halves.
#[inline(always)]
fn added<S: Simd, const P: usize, const R: usize, const C: usize>(
    simd: S,
    mut sums: [[[S::f32s; P]; R]; C],
) -> [[f32; R]; C] {
    let mut out = [[0.0; R]; C];
    #[cfg(target_arch = "x86_64")]
    if P == 1 && R * C == 24 && std::any::TypeId::of::<S>() == std::any::TypeId::of::<pulp::x86::V4>() {
        // SAFETY: V4 says that the processor has these instructions, and its registers are these.
        unsafe {
            let of = |at: usize| std::mem::transmute_copy(&sums[at / R][at % R][0]);
            avx512::added(of, out.as_flattened_mut());
        }
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

    /// The sums of the lanes of 24 registers, in halves: of several registers at a time, so that few lanes are idle. `of` is called
    /// with literals, for the registers not to go through memory.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    pub(super) unsafe fn added(of: impl Fn(usize) -> __m512, out: &mut [f32]) {
        let (out, rest) = out.split_at_mut(16);
        assert_eq!((out.len(), rest.len()), (16, 8));
        // SAFETY: the caller's promise; there is room for a register.
        unsafe {
            let low = pairs(parts(of(0), of(4), of(8), of(12)), parts(of(1), of(5), of(9), of(13)));
            let high = pairs(parts(of(2), of(6), of(10), of(14)), parts(of(3), of(7), of(11), of(15)));
            _mm512_storeu_ps(out.as_mut_ptr(), neighbours(low, high));
            let none = _mm512_setzero_ps();
            let low = pairs(parts(of(16), of(20), none, none), parts(of(17), of(21), none, none));
            let high = pairs(parts(of(18), of(22), none, none), parts(of(19), of(23), none, none));
            let mut last = [0.0; 16];
            _mm512_storeu_ps(last.as_mut_ptr(), neighbours(low, high));
            rest.copy_from_slice(&last[..8]);
        }
    }

    /// The quarters of each register added, four numbers for each: in the parts of a register.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn parts(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let x = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let y = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y))
        }
    }

    /// The halves of each part added: two numbers of a part of `a`, then two of that of `b`.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn pairs(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        }
    }

    /// Neighbours added: two numbers of a part of `a`, then two of that of `b`.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn neighbours(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b)) }
    }
}
