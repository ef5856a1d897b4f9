//! Loops over elements, rows and columns on several threads. What a task computes, and the order in which sums are added up, does not
//! depend on their number: equal inputs give equal bits.

use std::mem::MaybeUninit;
use std::ops::Range;

use num_traits::Zero;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Element;
use super::simd::{Elementwise, dispatch, write};

/// Work smaller than this many elements is not worth another thread.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;
/// Rows whose columns one task adds up.
const ROWS_PER_SUM: usize = 64;

/// Calls `f(row index, row)` for every row of `width` elements of `out`, on several threads when it is large.
pub(crate) fn for_each_row<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if width == 0 {
        return;
    }
    if out.len() <= ELEMENTS_PER_TASK {
        out.chunks_mut(width).enumerate().for_each(|(i, row)| f(i, row));
    } else {
        let rows_per_task = ELEMENTS_PER_TASK.div_ceil(width);
        out.par_chunks_mut(width).with_min_len(rows_per_task).enumerate().for_each(|(i, row)| f(i, row));
    }
}

/// Calls `f(index, item)` for every item of `out`, each of which costs about as much as `work` elements.
pub(crate) fn for_each_item<T: Send>(out: &mut [T], work: usize, f: impl Fn(usize, &mut T) + Sync + Send) {
    if out.len().saturating_mul(work) <= ELEMENTS_PER_TASK {
        out.iter_mut().enumerate().for_each(|(i, item)| f(i, item));
    } else {
        let items_per_task = ELEMENTS_PER_TASK.div_ceil(work.max(1));
        out.par_iter_mut().with_min_len(items_per_task).enumerate().for_each(|(i, item)| f(i, item));
    }
}

/// `f` of the elements at each position of slices of equal length.
pub(crate) fn map<T: Element, const IN: usize, const OUT: usize>(
    f: impl Elementwise<IN, OUT>,
    inputs: [&[T]; IN],
) -> [Vec<T>; OUT] {
    let len = inputs.first().map_or(0, |input| input.len());
    let task = |start, outs: [&mut [MaybeUninit<T>]; OUT]| {
        let task_len = outs.first().map_or(0, |out| out.len());
        let inputs = inputs.map(|input| &input[start..][..task_len]);
        dispatch(Map { f, inputs, outs });
    };
    // SAFETY: `Map` writes every element of its outputs.
    unsafe { fill(len, ELEMENTS_PER_TASK, task) }
}

struct Map<'a, F, T, const IN: usize, const OUT: usize> {
    f: F,
    inputs: [&'a [T]; IN],
    outs: [&'a mut [MaybeUninit<T>]; OUT],
}

impl<F: Elementwise<IN, OUT>, T: Element, const IN: usize, const OUT: usize> WithSimd for Map<'_, F, T, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        write(simd, self.f, self.inputs, self.outs);
    }
}

/// Computes the rows of a result one by one.
///
/// # Safety
/// [`row`](Self::row) writes every element of `out`.
pub(crate) unsafe trait Rows<T>: Sync {
    /// Implementations are `#[inline(always)]`.
    fn row<S: Simd>(&self, simd: S, index: usize, out: &mut [MaybeUninit<T>]);
}

/// `rows` rows of `width` elements.
pub(crate) fn map_rows<T: Element>(rows: usize, width: usize, kernel: impl Rows<T>) -> Vec<T> {
    if width == 0 {
        return vec![];
    }
    let rows_per_task = ELEMENTS_PER_TASK.div_ceil(width);
    let task = |start, [out]: [&mut [MaybeUninit<T>]; 1]| {
        dispatch(MapRows { kernel: &kernel, first: start / width, width, out });
    };
    // SAFETY: the kernel writes every element of each of its rows.
    let [out] = unsafe { fill(rows * width, rows_per_task * width, task) };
    out
}

struct MapRows<'a, K, T> {
    kernel: &'a K,
    first: usize,
    width: usize,
    out: &'a mut [MaybeUninit<T>],
}

impl<K: Rows<T>, T> WithSimd for MapRows<'_, K, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (i, row) in self.out.chunks_exact_mut(self.width).enumerate() {
            self.kernel.row(simd, self.first + i, row);
        }
    }
}

/// New vectors of `len` elements, which `f(index of the first element, part of each)` writes in parts of `part` elements.
///
/// # Safety
/// `f` writes every element that it is given.
unsafe fn fill<T: Element, const OUT: usize>(
    len: usize,
    part: usize,
    f: impl Fn(usize, [&mut [MaybeUninit<T>]; OUT]) + Sync,
) -> [Vec<T>; OUT] {
    let mut vectors = [(); OUT].map(|()| Vec::<T>::with_capacity(len));
    let mut rests = vectors.each_mut().map(|vector| &mut vector.spare_capacity_mut()[..len]);
    let part = part.max(1);
    if len <= part {
        f(0, rests);
    } else {
        let mut parts = Vec::with_capacity(len.div_ceil(part));
        for start in (0..len).step_by(part) {
            let part = rests.each_mut().map(|rest| {
                let (part, behind) = std::mem::take(rest).split_at_mut(part.min(len - start));
                *rest = behind;
                part
            });
            parts.push((start, part));
        }
        parts.into_par_iter().for_each(|(start, part)| f(start, part));
    }
    for vector in &mut vectors {
        // SAFETY: all parts together are the first `len` elements, and the caller's `f` wrote them.
        unsafe { vector.set_len(len) };
    }
    vectors
}

/// Adds the rows of something to sums of columns.
pub(crate) trait Columns<T: Element, const OUT: usize>: Sync {
    /// Implementations are `#[inline(always)]`.
    fn add_row<S: Simd>(&self, simd: S, index: usize, sums: [&mut [T::Acc]; OUT]);
}

/// The sums of `width` columns over `rows` rows, rounded once. Blocks of rows are added up on several threads, and then the blocks in
/// their order.
pub(crate) fn sum_columns<T: Element, const OUT: usize>(
    rows: usize,
    width: usize,
    kernel: impl Columns<T, OUT>,
) -> [Vec<T>; OUT] {
    if width == 0 {
        return [(); OUT].map(|()| vec![]);
    }
    let block = width * OUT;
    let mut sums = vec![T::Acc::zero(); rows.div_ceil(ROWS_PER_SUM).max(1) * block];
    let add = |(i, sums): (usize, &mut [T::Acc])| {
        let rows = i * ROWS_PER_SUM..rows.min((i + 1) * ROWS_PER_SUM);
        dispatch(SumColumns::<_, T, OUT> { kernel: &kernel, rows, width, sums });
    };
    if rows * width <= ELEMENTS_PER_TASK {
        sums.chunks_mut(block).enumerate().for_each(add);
    } else {
        sums.par_chunks_mut(block).enumerate().for_each(add);
    }
    let (total, others) = sums.split_at_mut(block);
    for other in others.chunks(block) {
        for (total, other) in total.iter_mut().zip(other) {
            *total += *other;
        }
    }
    let mut columns = total.chunks(width);
    [(); OUT].map(|()| columns.next().unwrap_or_default().iter().map(|sum| T::narrow(*sum)).collect())
}

struct SumColumns<'a, K, T: Element, const OUT: usize> {
    kernel: &'a K,
    rows: Range<usize>,
    width: usize,
    sums: &'a mut [T::Acc],
}

impl<K: Columns<T, OUT>, T: Element, const OUT: usize> WithSimd for SumColumns<'_, K, T, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { kernel, rows, width, sums } = self;
        for row in rows {
            let mut sums = sums.chunks_mut(width);
            kernel.add_row(simd, row, [(); OUT].map(|()| sums.next().unwrap_or_default()));
        }
    }
}
