//! Products of rows with rows for few tokens, or for any number whose bits must not depend on it: nothing is rearranged.

use super::DEPTH;
use super::dot::{LANES, Lines, dots};
use super::matrix::Matrix;
use super::product::{SMALL, Shared};
use super::scratch::Scratch;
use crate::cpu::Element;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Elements that one thread reads while another wakes up.
const SMALL_TO_READ: usize = 1 << 15;
/// Rows of a task: they stay in the second-level cache while all tokens meet them.
const ROWS: usize = 48;
/// Rows of a strip of tiles, or a multiple.
const STRIP: usize = 6;
/// Tokens that stay in the first-level cache.
const TOKENS: usize = 12;
/// Tokens of a task, where there are enough rows.
const CHUNK: usize = 96;

/// `out (tokens, n) = sum over the terms of x w^T, + bias`, of `x (tokens, depth)` and `w (n, depth)` whose rows are contiguous.
///
/// What a token gets has the same bits for any number of tokens.
pub(crate) fn row_product<T: Element<Acc = f32>>(
    out: &mut [T],
    n: usize,
    terms: &[(Matrix<'_>, Matrix<'_>)],
    bias: Option<&[T]>,
) {
    let Some(tokens) = terms.first().map(|(x, _)| x.rows).filter(|tokens| *tokens > 0 && n > 0) else { return };
    assert!(out.len() >= tokens * n && bias.is_none_or(|bias| bias.len() >= n));
    assert!(terms.iter().all(|(x, w)| x.rows == tokens && w.rows == n && w.columns == x.columns));
    let xs: Vec<Wide<'_>> = terms.iter().map(|(x, _)| Wide::of(*x)).collect();
    let work = tokens * n * terms.iter().map(|(x, _)| x.columns).sum::<usize>();
    // A few tokens take as long as reading the rows.
    let small = if tokens <= TOKENS { SMALL_TO_READ * tokens } else { SMALL };
    let threads = if work < small { 1 } else { rayon::current_num_threads() };
    let rows = ROWS.min(n.div_ceil(2 * threads).next_multiple_of(STRIP));
    let blocks = n.div_ceil(rows);
    // Few rows: the tokens are split among the threads instead.
    let chunk =
        if blocks >= threads { CHUNK } else { tokens.div_ceil(2 * threads).next_multiple_of(TOKENS).min(CHUNK) };
    let chunks = tokens.div_ceil(chunk);
    let shared = Shared::of(&mut out[..tokens * n]);
    let task = |index: usize| {
        let (rows, tokens) = (
            index / chunks * rows..n.min((index / chunks + 1) * rows),
            index % chunks * chunk..tokens.min((index % chunks + 1) * chunk),
        );
        Arch::new().dispatch(Task { terms, xs: &xs, bias, out: shared, n, rows, tokens });
    };
    if threads == 1 {
        (0..blocks * chunks).for_each(task);
    } else {
        (0..blocks * chunks).into_par_iter().for_each(task);
    }
}

/// The rows of a matrix as f32: themselves or a copy.
enum Wide<'a> {
    Own(Lines<'a>),
    Copy(Scratch, usize),
}

impl<'a> Wide<'a> {
    fn of(matrix: Matrix<'a>) -> Self {
        if let Some(lines) = lines(&matrix) {
            return Self::Own(lines);
        }
        let mut copy = Scratch::new(matrix.rows * matrix.columns);
        for (i, row) in copy.chunks_exact_mut(matrix.columns.max(1)).enumerate() {
            matrix.read_row(i, 0, row);
        }
        Self::Copy(copy, matrix.columns)
    }

    fn from(&self, row: usize, column: usize) -> Lines<'_> {
        let lines = match self {
            Self::Own(lines) => *lines,
            Self::Copy(copy, stride) => Lines { data: copy, stride: *stride },
        };
        lines.from(row, column)
    }
}

impl<'a> Lines<'a> {
    fn from(self, row: usize, column: usize) -> Self {
        Self { data: &self.data[row * self.stride + column..], ..self }
    }
}

/// Rows that need not be widened.
fn lines<'a>(matrix: &Matrix<'a>) -> Option<Lines<'a>> {
    let (data, stride, column) = matrix.as_f32()?;
    (column == 1 || matrix.columns == 1).then_some(Lines { data, stride })
}

struct Task<'a, T> {
    terms: &'a [(Matrix<'a>, Matrix<'a>)],
    xs: &'a [Wide<'a>],
    bias: Option<&'a [T]>,
    out: Shared<T>,
    n: usize,
    rows: Range<usize>,
    tokens: Range<usize>,
}

impl<T: Element<Acc = f32>> WithSimd for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match LANES / S::F32_LANES {
            0..=1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            3..=4 => self.run::<S, 4>(simd),
            5..=8 => self.run::<S, 8>(simd),
            _ => self.run::<S, LANES>(simd),
        }
    }
}

impl<T: Element<Acc = f32>> Task<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const P: usize>(self, simd: S) {
        let Self { terms, xs, bias, out, n, rows, tokens } = self;
        let stride = rows.len();
        let mut sums = Scratch::new(tokens.len() * stride);
        sums.fill(0.0);
        for ((_, w), x) in terms.iter().zip(xs) {
            for k in (0..w.columns).step_by(DEPTH) {
                let depth = DEPTH.min(w.columns - k);
                // Widened for all tokens, or for the only ones a few rows at a time, which stay near.
                let at_once = match lines(w) {
                    Some(_) => rows.len(),
                    None if tokens.len() <= TOKENS => STRIP,
                    None => rows.len(),
                };
                let mut widened = Scratch::new(if lines(w).is_some() { 0 } else { at_once * depth });
                for first in rows.clone().step_by(at_once) {
                    let count = at_once.min(rows.end - first);
                    let left = match lines(w) {
                        Some(lines) => lines.from(first, k),
                        None => {
                            for (i, row) in widened.chunks_exact_mut(depth).enumerate().take(count) {
                                w.read_row(first + i, k, row);
                            }
                            Lines { data: &widened, stride: depth }
                        }
                    };
                    for token in tokens.clone().step_by(TOKENS) {
                        let shape = (count, TOKENS.min(tokens.end - token), depth);
                        let sums = &mut sums[(token - tokens.start) * stride + first - rows.start..];
                        simd.vectorize(Dots::<P> { shape, w: left, x: x.from(token, k), sums, stride });
                    }
                }
            }
        }
        for (token, sums) in tokens.zip(sums.chunks_exact(stride)) {
            // SAFETY: other tasks have other rows or other tokens.
            let out = unsafe { out.part(token * n + rows.start..token * n + rows.end) };
            for (i, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                *out = T::narrow(sum + bias.map_or(0.0, |bias| bias[rows.start + i].widen()));
            }
        }
    }
}

/// [`dots`] as a function of its own, in which the accumulators stay in registers.
struct Dots<'a, const P: usize> {
    shape: (usize, usize, usize),
    w: Lines<'a>,
    x: Lines<'a>,
    sums: &'a mut [f32],
    stride: usize,
}

impl<const P: usize> WithSimd for Dots<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { shape, w, x, sums, stride } = self;
        dots::<S, P>(simd, shape, w, x, sums, stride);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{dispatch, with_each_arch, without_vectors};

    /// Runs `dots` with the instructions that the test asks for.
    struct Sums<'a>(Dots<'a, 0>);

    impl WithSimd for Sums<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Dots { shape, w, x, sums, stride } = self.0;
            match LANES / S::F32_LANES {
                1 => dots::<S, 1>(simd, shape, w, x, sums, stride),
                2 => dots::<S, 2>(simd, shape, w, x, sums, stride),
                lanes => {
                    assert_eq!(lanes, LANES);
                    dots::<S, LANES>(simd, shape, w, x, sums, stride);
                }
            }
        }
    }

    #[test]
    fn registers_of_every_length_and_tiles_of_every_size_give_the_same_bits() {
        let (rows, tokens) = (11, 17);
        for depth in [1, 7, 16, 45, 768] {
            let sample = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * i % 1009 + 13 * seed) as f32 * 0.7).sin()).collect()
            };
            let (w, x) = (sample(rows * depth, 1), sample(tokens * depth, 2));
            let lines = |data| Lines { data, stride: depth };
            // Without vector instructions nothing is fused.
            let exact = |i: usize, j: usize| {
                let terms = w[i * depth..][..depth].iter().zip(&x[j * depth..][..depth]);
                terms.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()
            };
            let mut all = vec![];
            let mut run = || {
                for (rows, tokens) in [(rows, tokens), (rows, 1), (1, tokens), (5, 8), (4, 6), (2, 3), (1, 1)] {
                    let mut sums = vec![0.0; tokens * rows];
                    let shape = (rows, tokens, depth);
                    dispatch(Sums(Dots { shape, w: lines(&w), x: lines(&x), sums: &mut sums, stride: rows }));
                    for (at, sum) in sums.iter().enumerate() {
                        let exact = exact(at % rows, at / rows);
                        assert!((f64::from(*sum) - exact).abs() < 1e-7 * depth as f64 + 1e-6, "{sum} is not {exact}");
                    }
                    all.push((rows, tokens, sums));
                }
            };
            without_vectors(&mut run);
            with_each_arch(&mut run);
            let (scalar, all) = all.split_at(7);
            for part in [scalar, all] {
                let whole = &part[0].2;
                for (of_rows, of_tokens, sums) in part {
                    for (at, sum) in sums.iter().enumerate() {
                        let expected = whole[at / of_rows * rows + at % of_rows];
                        assert_eq!(
                            sum.to_bits(),
                            expected.to_bits(),
                            "{of_rows} rows, {of_tokens} tokens, {depth} deep"
                        );
                    }
                }
            }
        }
    }
}
