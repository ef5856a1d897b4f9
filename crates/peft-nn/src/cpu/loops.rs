use rayon::prelude::*;

use super::Element;

/// Work smaller than this many elements is not worth another thread.
const ELEMENTS_PER_TASK: usize = 1 << 14;

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
pub(crate) fn map<T: Element, const N: usize>(inputs: [&[T]; N], f: impl Fn([T; N]) -> T + Sync + Send) -> Vec<T> {
    let len = inputs.first().map_or(0, |input| input.len());
    let mut out = vec![T::zero(); len];
    for_each_row(&mut out, ELEMENTS_PER_TASK, |i, block| {
        let inputs = inputs.map(|input| &input[i * ELEMENTS_PER_TASK..][..block.len()]);
        for (j, y) in block.iter_mut().enumerate() {
            *y = f(inputs.map(|input| input[j]));
        }
    });
    out
}

/// The sum over `rows` of what `add(row index, accumulator)` adds, rounded once. Always in row order, so that equal
/// inputs give equal bits whatever the number of threads.
pub(crate) fn sum_rows<T: Element>(rows: usize, width: usize, mut add: impl FnMut(usize, &mut [T::Acc])) -> Vec<T> {
    let mut sum = vec![T::acc(0.0); width];
    for row in 0..rows {
        add(row, &mut sum);
    }
    sum.into_iter().map(T::narrow).collect()
}
