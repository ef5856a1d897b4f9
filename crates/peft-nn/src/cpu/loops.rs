//! Loops over elements, rows and columns on several threads. What a task computes, and the order in which sums are added up, does not
//! depend on their number: equal inputs give equal bits.

use std::iter;
use std::mem::MaybeUninit;

use pulp::{Simd, WithSimd};
use rayon::current_num_threads;
use rayon::prelude::*;

use super::Element;
use super::simd::{Elementwise, dispatch, write};

/// Work smaller than this many elements is not worth another thread.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Calls `f(row index, row)` for every row of `width` elements of `out`, on several threads when it is large.
pub(crate) fn for_each_row<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if width == 0 {
        return;
    }
    if out.len() <= ELEMENTS_PER_TASK || current_num_threads() == 1 {
        out.chunks_mut(width).enumerate().for_each(|(i, row)| f(i, row));
    } else {
        let rows_per_task = ELEMENTS_PER_TASK.div_ceil(width);
        out.par_chunks_mut(width).with_min_len(rows_per_task).enumerate().for_each(|(i, row)| f(i, row));
    }
}

/// Calls `f(index, item)` for every item of `out`, each of which costs about as much as `work` elements.
pub(crate) fn for_each_item<T: Send>(out: &mut [T], work: usize, f: impl Fn(usize, &mut T) + Sync + Send) {
    if out.len().saturating_mul(work) <= ELEMENTS_PER_TASK || current_num_threads() == 1 {
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
    let task = |start, outs: [&mut [MaybeUninit<T>]; OUT], ()| {
        let task_len = outs.first().map_or(0, |out| out.len());
        let inputs = inputs.map(|input| &input[start..][..task_len]);
        dispatch(Map { f, inputs, outs });
    };
    // SAFETY: `Map` writes every element of its outputs, and the extras do not end.
    unsafe { fill(len, ELEMENTS_PER_TASK, iter::repeat(()), task) }
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

/// New vectors of `len` elements, which `f(index of the first element, part of each, extra)` writes in parts of `part` elements.
///
/// # Safety
/// `f` writes every element that it is given, and there are no fewer extras than parts.
pub(super) unsafe fn fill<T: Element, E: Send, const OUT: usize>(
    len: usize,
    part: usize,
    extras: impl IntoIterator<Item = E>,
    f: impl Fn(usize, [&mut [MaybeUninit<T>]; OUT], E) + Sync,
) -> [Vec<T>; OUT] {
    let mut vectors = [(); OUT].map(|()| Vec::<T>::with_capacity(len));
    let mut rests = vectors.each_mut().map(|vector| &mut vector.spare_capacity_mut()[..len]);
    let part = part.max(1);
    let mut parts = Vec::with_capacity(len.div_ceil(part));
    for (start, extra) in (0..len).step_by(part).zip(extras) {
        let part = rests.each_mut().map(|rest| {
            let (part, behind) = std::mem::take(rest).split_at_mut(part.min(len - start));
            *rest = behind;
            part
        });
        parts.push((start, part, extra));
    }
    if parts.len() == 1 || current_num_threads() == 1 {
        parts.into_iter().for_each(|(start, part, extra)| f(start, part, extra));
    } else {
        parts.into_par_iter().for_each(|(start, part, extra)| f(start, part, extra));
    }
    for vector in &mut vectors {
        // SAFETY: all parts together are the first `len` elements, and `f` wrote them, by the caller's promise.
        unsafe { vector.set_len(len) };
    }
    vectors
}
