//! The product with a single token: it takes as long as reading the matrix, so the rows are read a register at a time.

use super::matrix::Matrix;
use super::product::{ByRows, SMALL, Shared};
use crate::cpu::Element;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Sums side by side, however many registers they fill: the same bits on every processor.
const LANES: usize = 64;
/// Rows of one task.
const ROWS: usize = 64;
/// Elements that are widened at a time.
const RUN: usize = 1024;

/// Whether [`vector_product`] reads the rows of this matrix.
pub(super) fn has_contiguous_rows(matrix: &Matrix<'_>) -> bool {
    !matrix.is_column_major()
}

/// `out[i] = sum over the terms of w[i] x, + bias[i]`, for terms of one token each.
pub(super) fn vector_product<T: Element<Acc = f32>>(out: &mut [T], terms: &[ByRows<'_>], bias: Option<&[T]>) {
    let xs: Vec<Vec<f32>> = terms.iter().map(|term| term.x.first_column()).collect();
    let rows = out.len();
    let work = rows * xs.iter().map(Vec::len).sum::<usize>();
    let shared = Shared::of(out);
    let task = |index: usize| {
        let rows = index * ROWS..rows.min((index + 1) * ROWS);
        // SAFETY: every task has its own rows.
        let out = unsafe { shared.part(rows.clone()) };
        Arch::new().dispatch(Rows { terms, xs: &xs, bias, rows, out });
    };
    let tasks = rows.div_ceil(ROWS);
    if work < SMALL { (0..tasks).for_each(task) } else { (0..tasks).into_par_iter().for_each(task) }
}

struct Rows<'a, T> {
    terms: &'a [ByRows<'a>],
    xs: &'a [Vec<f32>],
    bias: Option<&'a [T]>,
    rows: Range<usize>,
    out: &'a mut [T],
}

impl<T: Element<Acc = f32>> WithSimd for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { terms, xs, bias, rows, out } = self;
        let mut widened = [0.0; RUN];
        for (i, out) in rows.zip(out) {
            let mut sum = bias.map_or(0.0, |bias| bias[i].widen());
            for (term, x) in terms.iter().zip(xs) {
                let mut sums = [0.0; LANES];
                if let Some((data, row, _)) = term.w.as_f32() {
                    add(&mut sums, &data[i * row..][..x.len()], x);
                } else {
                    for (run, x) in x.chunks(RUN).enumerate() {
                        let widened = &mut widened[..x.len()];
                        term.w.read_row(i, run * RUN, widened);
                        add(&mut sums, widened, x);
                    }
                }
                sum += sums.iter().sum::<f32>();
            }
            *out = T::narrow(sum);
        }
    }
}

#[inline(always)]
fn add(sums: &mut [f32; LANES], w: &[f32], x: &[f32]) {
    let (w, w_rest) = w.as_chunks::<LANES>();
    let (x, x_rest) = x.as_chunks::<LANES>();
    for (w, x) in w.iter().zip(x) {
        for i in 0..LANES {
            sums[i] += w[i] * x[i];
        }
    }
    for ((sum, w), x) in sums.iter_mut().zip(w_rest).zip(x_rest) {
        *sum += w * x;
    }
}
