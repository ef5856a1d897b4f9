//! Results that are made of rows, and sums over rows, on several threads.

use std::array;
use std::mem::MaybeUninit;

use num_traits::Zero;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Element;
use super::loops::{ELEMENTS_PER_TASK, fill};
use super::simd::{Identity, accumulate, dispatch};

/// Rows that one task adds up.
const ROWS_PER_SUM: usize = 64;

/// Where rows are widened: one place for each of the tensors that a kernel reads.
pub(crate) type Scratch<T> = [Vec<<T as Element>::Acc>; 2];

/// Computes the rows of a result one by one, and adds something to sums of columns on the way.
///
/// # Safety
/// [`row`](Self::row) writes every element of `out`.
pub(crate) unsafe trait Rows<T: Element, const SUMS: usize>: Sync {
    /// Implementations are `#[inline(always)]`.
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        sums: [&mut [T::Acc]; SUMS],
        scratch: &mut Scratch<T>,
    );
}

/// `rows` rows of `width` elements, and the sums of columns, rounded once. Blocks of rows are added up on several threads, and then the
/// blocks in their order.
pub(crate) fn map_rows<T: Element, const SUMS: usize>(
    rows: usize,
    width: usize,
    kernel: impl Rows<T, SUMS>,
) -> (Vec<T>, [Vec<T>; SUMS]) {
    if width == 0 {
        return (vec![], [(); SUMS].map(|()| vec![]));
    }
    let rows_per_task = if SUMS == 0 { ELEMENTS_PER_TASK.div_ceil(width) } else { ROWS_PER_SUM };
    let task = |start, [out]: [&mut [MaybeUninit<T>]; 1], sums: &mut [T::Acc]| {
        dispatch(MapRows::<_, _, SUMS> { kernel: &kernel, first: start / width, width, out, sums });
    };
    let block = width * SUMS;
    let mut sums = vec![T::Acc::zero(); rows.div_ceil(rows_per_task).max(1) * block];
    let blocks: Vec<&mut [T::Acc]> = match SUMS {
        0 => (0..rows.div_ceil(rows_per_task)).map(|_| Default::default()).collect(),
        _ => sums.chunks_mut(block).collect(),
    };
    // SAFETY: the kernel writes every element of each of its rows, and there is a block for each task.
    let [out] = unsafe { fill(rows * width, rows_per_task * width, blocks, task) };
    add_up(&mut sums, block);
    let mut columns = sums.chunks(width);
    (out, [(); SUMS].map(|()| columns.next().unwrap_or_default().iter().map(|sum| T::narrow(*sum)).collect()))
}

/// The sums of the columns of a matrix, in the type of the arithmetic.
pub(crate) fn column_sums<T: Element>(matrix: &[T], width: usize) -> Vec<T::Acc> {
    if width == 0 {
        return vec![];
    }
    let blocks = matrix.len().div_ceil(ROWS_PER_SUM * width).max(1);
    let mut sums = vec![T::Acc::zero(); blocks * width];
    let parts = sums.par_chunks_mut(width).zip(matrix.par_chunks(ROWS_PER_SUM * width));
    parts.for_each(|(sums, rows)| dispatch(AddRows { rows, sums }));
    add_up(&mut sums, width);
    sums.truncate(width);
    sums
}

/// Adds all blocks to the first one.
fn add_up<A: Element>(sums: &mut [A], block: usize) {
    let (total, others) = sums.split_at_mut(block);
    for other in others.chunks(block.max(1)) {
        for (total, other) in total.iter_mut().zip(other) {
            *total += *other;
        }
    }
}

struct MapRows<'a, K, T: Element, const SUMS: usize> {
    kernel: &'a K,
    first: usize,
    width: usize,
    out: &'a mut [MaybeUninit<T>],
    sums: &'a mut [T::Acc],
}

impl<K: Rows<T, SUMS>, T: Element, const SUMS: usize> WithSimd for MapRows<'_, K, T, SUMS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { kernel, first, width, out, sums } = self;
        let mut scratch = [const { Vec::new() }; 2];
        for (i, row) in out.chunks_exact_mut(width).enumerate() {
            let mut columns = sums.chunks_mut(width);
            let columns = array::from_fn(|_| columns.next().unwrap_or_default());
            kernel.row(simd, first + i, row, columns, &mut scratch);
        }
    }
}

struct AddRows<'a, T: Element> {
    rows: &'a [T],
    sums: &'a mut [T::Acc],
}

impl<T: Element> WithSimd for AddRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for row in self.rows.chunks_exact(self.sums.len()) {
            accumulate(simd, Identity, [row], [&mut *self.sums]);
        }
    }
}
