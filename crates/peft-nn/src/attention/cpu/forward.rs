//! The output, and what normalises the exponentials of every query.

use std::ops::Range;

use num_traits::Float;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::arithmetic::{Arithmetic, Lhs, Out, Panels};
use super::inputs::{Inputs, narrow};
use super::scores::{Window, hide, union};
use super::shared::Rows;
use super::tasks::{SMALL, for_each_task};
use super::{few, pack};
use crate::cpu::Element;
use crate::cpu::simd::dispatch;

/// Queries of each head of a task: whole tiles of any height, and enough to use a block of keys for while it is in the
/// second-level cache.
const QUERIES: usize = 48;
/// Keys of a block: a tile of scores stays in the first-level cache, keys and values in the second.
pub(super) const KEYS: usize = 256;

/// Writes rows of the output, `(.., value_dim)` in the operands' arrangement, and for each query of `(batch, heads,
/// queries)` the shift and the inverse of its [`Normaliser`](super::arithmetic::Normaliser).
pub(super) fn forward<T: Element>(inputs: Inputs<'_, T>, out: &mut [T], normalisers: &mut [[T::Acc; 2]])
where
    T::Acc: Arithmetic,
{
    let g = inputs.geometry;
    if few::are_few(&g) {
        return few::forward(inputs, out, normalisers);
    }
    let blocks = Blocks::new(&inputs);
    let entries = g.batch * g.kv_heads;
    let parallel = g.work() > SMALL;
    let len = blocks.len().max(1);
    let mut packed = T::Acc::buffer(entries * blocks.count * len);
    let pack = |(index, unit): (usize, &mut [T::Acc])| {
        let (entry, block) = (index / blocks.count, index % blocks.count);
        let (batch, head) = (entry / g.kv_heads, entry % g.kv_heads);
        dispatch(PackBlock { inputs, blocks, batch, head, block, unit });
    };
    if parallel {
        packed.par_chunks_mut(len).enumerate().for_each(pack);
    } else {
        packed.chunks_mut(len).enumerate().for_each(pack);
    }
    let (out, normalisers) = (Rows::of(out, g.value_dim), Rows::of(normalisers, 1));
    let parts = g.queries.div_ceil(QUERIES);
    for_each_task(entries * parts, parallel, |index| {
        // The last queries see the most keys.
        let (part, entry) = (parts - 1 - index / entries, index % entries);
        let (batch, head) = (entry / g.kv_heads, entry % g.kv_heads);
        let queries = part * QUERIES..g.queries.min((part + 1) * QUERIES);
        let packed = &packed[entry * blocks.count * len..][..blocks.count * len];
        let written = Written { inputs, batch, head, queries, out: &out, normalisers: &normalisers };
        dispatch(Task { blocks, packed, written });
    });
}

/// How the keys and values of one head are laid out.
#[derive(Clone, Copy)]
struct Blocks {
    count: usize,
    /// Keys of a block.
    keys: usize,
    /// Elements of the keys of a block.
    keys_len: usize,
    values_len: usize,
}

impl Blocks {
    fn new<T: Element>(inputs: &Inputs<'_, T>) -> Self {
        let (g, tiles) = (inputs.geometry, inputs.tiles);
        let keys = KEYS.min(tiles.padded(g.keys));
        let (keys_len, values_len) = (keys * g.head_dim, keys * tiles.padded(g.value_dim));
        Self { count: g.keys.div_ceil(keys.max(1)), keys, keys_len, values_len }
    }

    fn len(&self) -> usize {
        self.keys_len + self.values_len
    }
}

struct PackBlock<'a, T: Element> {
    inputs: Inputs<'a, T>,
    blocks: Blocks,
    batch: usize,
    head: usize,
    block: usize,
    unit: &'a mut [T::Acc],
}

impl<T: Element> WithSimd for PackBlock<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, blocks, batch, head, block, unit } = self;
        let g = inputs.geometry;
        let (keys, values) = unit.split_at_mut(blocks.keys_len);
        let start = block * blocks.keys;
        let count = blocks.keys.min(g.keys - start);
        pack::transposed(simd, count, g.head_dim, keys, |i, row| inputs.load_key(batch, head, start + i, row));
        pack::straight(simd, count, g.value_dim, values, |i, row| inputs.load_value(batch, head, start + i, row));
    }
}

/// The queries of one group of heads against all their keys.
struct Task<'a, T: Element> {
    blocks: Blocks,
    packed: &'a [T::Acc],
    written: Written<'a, T>,
}

/// The queries of one group of heads, and where their results go.
pub(super) struct Written<'a, T: Element> {
    pub(super) inputs: Inputs<'a, T>,
    pub(super) batch: usize,
    /// Of the keys.
    pub(super) head: usize,
    pub(super) queries: Range<usize>,
    pub(super) out: &'a Rows<'a, T>,
    pub(super) normalisers: &'a Rows<'a, [T::Acc; 2]>,
}

/// What is known of a row of scores after some blocks of keys.
#[derive(Clone, Copy)]
pub(super) struct RowState<A> {
    pub(super) max: A,
    /// Of the exponentials of the scores less the maximum.
    pub(super) sum: A,
    /// What brings sums from before the last block to the maximum.
    factor: A,
}

impl<A: Arithmetic> Default for RowState<A> {
    fn default() -> Self {
        Self { max: A::neg_infinity(), sum: A::zero(), factor: A::one() }
    }
}

impl<A: Arithmetic> RowState<A> {
    /// What is taken from the scores. Where the row saw nothing that is any finite number: the exponentials of hidden
    /// scores are zero, and those of NaN are NaN.
    #[inline(always)]
    fn shift(&self) -> A {
        if self.max == A::neg_infinity() { A::zero() } else { self.max }
    }
}

impl<T: Element> WithSimd for Task<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { blocks, packed, written } = &self;
        let Written { inputs, batch, head, queries, .. } = written;
        let (g, tiles, mask) = (inputs.geometry, T::Acc::tiles::<S>(), inputs.mask);
        let (batch, count) = (*batch, queries.len());
        let value_width = tiles.padded(g.value_dim);
        let rows = g.group() * count;
        let mut q = T::Acc::buffer(rows * g.head_dim);
        for row in 0..rows {
            let (of_group, query) = (row / count, queries.start + row % count);
            inputs.load_query(batch, head * g.group() + of_group, query, &mut q[row * g.head_dim..][..g.head_dim]);
        }
        let mut sums = T::Acc::buffer(rows * value_width);
        sums.fill(T::acc(0.0));
        let mut states = vec![RowState::<T::Acc>::default(); rows];
        let mut scores = T::Acc::buffer(tiles.rows * blocks.keys);
        let stride = blocks.keys;
        let seen = union(queries.clone().map(|query| mask.keys_of(batch, query)));
        for block in seen.start / stride.max(1)..seen.end.div_ceil(stride.max(1)) {
            let in_block = block * stride..g.keys.min((block + 1) * stride);
            let (keys, values) = packed[block * blocks.len()..][..blocks.len()].split_at(blocks.keys_len);
            for first in (0..count).step_by(tiles.rows) {
                let height = tiles.rows.min(count - first);
                let of_row = |i: usize| mask.keys_of(batch, queries.start + first + i);
                let Some(window) = Window::new(tiles, (0..height).map(of_row), &in_block) else { continue };
                let width = window.columns.len();
                let terms = mask.terms(batch, in_block.start + window.columns.start);
                for of_group in 0..g.group() {
                    let at = of_group * count + first;
                    let lhs = Lhs { elements: &q[at * g.head_dim..], row: g.head_dim, depth: 1 };
                    let elements = &keys[window.columns.start * g.head_dim..];
                    let panels = Panels { elements, rows: g.head_dim, from: 0, columns: width };
                    let out = Out { elements: &mut scores, stride, add: false };
                    T::Acc::product(simd, height, g.head_dim, lhs, panels, out);
                    for i in 0..height {
                        hide(
                            simd,
                            &mut scores[i * stride..][..width],
                            window.of_query(mask, batch, queries.start + first + i),
                            terms,
                        );
                    }
                    let (scores_of, states) = (&mut scores[..], &mut states[at..at + height]);
                    let sums = &mut sums[at * value_width..];
                    absorb(simd, (scores_of, stride, width), inputs.scale.score, states, sums, value_width);
                    let seen = &window.seen;
                    let lhs = Lhs { elements: &scores[seen.start - window.columns.start..], row: stride, depth: 1 };
                    let rows = in_block.len();
                    let panels = Panels { elements: values, rows, from: seen.start, columns: value_width };
                    let out = Out { elements: sums, stride: value_width, add: true };
                    T::Acc::product(simd, height, seen.len(), lhs, panels, out);
                }
            }
        }
        written.write(&sums, value_width, &states);
    }
}

impl<T: Element> Written<'_, T>
where
    T::Acc: Arithmetic,
{
    /// `sums` is `(rows, value_width)`.
    #[inline(always)]
    pub(super) fn write(&self, sums: &[T::Acc], value_width: usize, states: &[RowState<T::Acc>]) {
        let g = self.inputs.geometry;
        let count = self.queries.len();
        let mut row = T::Acc::buffer(g.value_dim);
        for (at, state) in states.iter().enumerate() {
            let (head, query) = (self.head * g.group() + at / count, self.queries.start + at % count);
            // SAFETY: no other task has this head and query.
            let (out, normaliser) = unsafe {
                let index = g.arrangement.row((self.batch, head, query), g.heads, g.queries);
                let of_query = (self.batch * g.heads + head) * g.queries + query;
                (self.out.row(index), self.normalisers.row(of_query))
            };
            let sees = state.sum != T::acc(0.0);
            let divisor = if sees { state.sum } else { T::acc(1.0) };
            row.iter_mut().zip(&sums[at * value_width..]).for_each(|(x, &sum)| *x = sum / divisor);
            narrow(&row, out);
            // A query that sees nothing gets no probability in the backward pass either.
            let inverse = if sees { state.sum.recip() } else { T::acc(0.0) };
            normaliser[0] = [state.shift(), inverse];
        }
    }
}

/// Makes rows of scores exponentials of their multiples, and brings what was summed before to the same maximum.
#[inline(always)]
pub(super) fn absorb<A: Arithmetic, S: Simd>(
    simd: S,
    (scores, stride, width): (&mut [A], usize, usize),
    factor: A,
    states: &mut [RowState<A>],
    sums: &mut [A],
    value_width: usize,
) {
    // One pass after another: a row need not wait for the maximum of the last.
    for (i, state) in states.iter_mut().enumerate() {
        let max = Float::max(state.max, A::row_max(simd, &scores[i * stride..][..width]) * factor);
        // Of nothing there is nothing to scale.
        state.factor = if state.sum == A::zero() { A::one() } else { (state.max - max).exp() };
        state.max = max;
    }
    for (i, state) in states.iter_mut().enumerate() {
        if state.factor != A::one() {
            A::row_scale(simd, &mut sums[i * value_width..][..value_width], state.factor);
        }
        let shift = state.shift();
        state.sum = state.sum * state.factor + A::row_exp(simd, &mut scores[i * stride..][..width], factor, shift);
    }
}
