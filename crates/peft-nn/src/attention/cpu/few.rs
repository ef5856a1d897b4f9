//! Few queries and many keys, as when a text is generated: keys are used where they lie instead of laid out first.

use std::ops::Range;

use num_traits::Float;
use pulp::{Simd, WithSimd};

use super::arithmetic::{Arithmetic, Lhs, Out, Panels};
use super::forward::{RowState, Written, absorb};
use super::inputs::Inputs;
use super::pack;
use super::scores::{Window, hide};
use super::shared::Rows;
use super::tasks::for_each_task;
use crate::attention::geometry::Geometry;
use crate::cpu::Element;
use crate::cpu::simd::dispatch;

/// Keys of a task.
const KEYS: usize = 1024;
/// Keys of a block: their values are laid out together.
const BLOCK: usize = 128;
/// Multiply-adds that are not worth another thread: there is little more to do than to read.
const SMALL: usize = 1 << 20;
/// Queries of a group of heads, for each of which a key is multiplied alone.
const QUERIES: usize = 12;

/// Whether there are so few queries for each key that laying the keys out would not pay.
pub(super) fn are_few(g: &Geometry) -> bool {
    g.group() * g.queries <= QUERIES
}

/// As [`forward`](super::forward::forward).
pub(super) fn forward<T: Element>(inputs: Inputs<'_, T>, out: &mut [T], normalisers: &mut [[T::Acc; 2]])
where
    T::Acc: Arithmetic,
{
    let g = inputs.geometry;
    let (entries, chunks) = (g.batch * g.kv_heads, g.keys.div_ceil(KEYS).max(1));
    let (rows, width) = (g.group() * g.queries, inputs.tiles.padded(g.value_dim));
    if rows == 0 {
        return;
    }
    let mut states = vec![RowState::default(); entries * chunks * rows];
    let mut sums = T::Acc::buffer(entries * chunks * rows * width);
    {
        let (states, sums) = (Rows::of(&mut states, rows), Rows::of(&mut sums, rows * width));
        for_each_task(entries * chunks, g.work() > SMALL, |index| {
            let (entry, chunk) = (index / chunks, index % chunks);
            let (batch, head) = (entry / g.kv_heads, entry % g.kv_heads);
            let keys = chunk * KEYS..g.keys.min((chunk + 1) * KEYS);
            // SAFETY: every task has rows of its own.
            let (states, sums) = unsafe { (states.row(index), sums.row(index)) };
            dispatch(Task { inputs, batch, head, keys, states, sums });
        });
    }
    let (out, normalisers) = (Rows::of(out, g.value_dim), Rows::of(normalisers, 1));
    for entry in 0..entries {
        let (batch, head) = (entry / g.kv_heads, entry % g.kv_heads);
        let written = Written { inputs, batch, head, queries: 0..g.queries, out: &out, normalisers: &normalisers };
        let part = entry * chunks * rows..(entry + 1) * chunks * rows;
        let (states, sums) = (&mut states[part.clone()], &mut sums[part.start * width..part.end * width]);
        dispatch(Merge { states, sums, written });
    }
}

/// All queries of one group of heads against some of their keys.
struct Task<'a, T: Element> {
    inputs: Inputs<'a, T>,
    batch: usize,
    /// Of the keys.
    head: usize,
    keys: Range<usize>,
    /// Of each row.
    states: &'a mut [RowState<T::Acc>],
    /// `(rows, padded value_dim)`
    sums: &'a mut [T::Acc],
}

impl<T: Element> WithSimd for Task<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, batch, head, keys, states, sums } = self;
        let (g, tiles, mask) = (inputs.geometry, T::Acc::tiles::<S>(), inputs.mask);
        let rows = g.group() * g.queries;
        let (head_width, value_width) = (tiles.padded(g.head_dim), tiles.padded(g.value_dim));
        let mut q = T::Acc::buffer((rows + 1) * head_width);
        q.fill(T::acc(0.0));
        let (q, k) = q.split_at_mut(rows * head_width);
        for row in 0..rows {
            let of_head = head * g.group() + row / g.queries;
            inputs.load_query(batch, of_head, row % g.queries, &mut q[row * head_width..][..g.head_dim]);
        }
        let mut scores = T::Acc::buffer(rows * BLOCK);
        let mut values = T::Acc::buffer(BLOCK * value_width);
        sums.fill(T::acc(0.0));
        let of_row = |row: usize| mask.keys_of(batch, row % g.queries);
        for start in keys.clone().step_by(BLOCK) {
            let block = start..keys.end.min(start + BLOCK);
            let Some(Window { seen, columns, .. }) = Window::new(tiles, (0..rows).map(of_row), &block) else {
                continue;
            };
            for column in seen.clone() {
                inputs.load_key(batch, head, start + column, &mut k[..g.head_dim]);
                for (row, q) in q.chunks_exact(head_width.max(1)).enumerate() {
                    scores[row * BLOCK + column - columns.start] = T::Acc::row_dot(simd, q, k);
                }
            }
            let terms = mask.terms(batch, start + columns.start);
            for row in 0..rows {
                let window = Window { seen: seen.clone(), columns: columns.clone(), start };
                hide(
                    simd,
                    &mut scores[row * BLOCK..][..columns.len()],
                    window.of_query(mask, batch, row % g.queries),
                    terms,
                );
            }
            absorb(simd, (&mut scores, BLOCK, columns.len()), inputs.scale.score, states, sums, value_width);
            pack::straight(simd, seen.len(), g.value_dim, &mut values, |i, row| {
                inputs.load_value(batch, head, start + seen.start + i, row);
            });
            let lhs = Lhs { elements: &scores[seen.start - columns.start..], row: BLOCK, depth: 1 };
            let panels = Panels { elements: &values, rows: seen.len(), from: 0, columns: value_width };
            let out = Out { elements: sums, stride: value_width, add: true };
            T::Acc::product(simd, rows, seen.len(), lhs, panels, out);
        }
    }
}

/// Brings together what the rows of a group have from all keys, in their order.
struct Merge<'a, T: Element> {
    /// `(chunks, rows)`
    states: &'a mut [RowState<T::Acc>],
    /// `(chunks, rows, padded value_dim)`
    sums: &'a mut [T::Acc],
    written: Written<'a, T>,
}

impl<T: Element> WithSimd for Merge<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { states, sums, written } = self;
        let g = written.inputs.geometry;
        let (rows, width) = (g.group() * g.queries, T::Acc::tiles::<S>().padded(g.value_dim));
        let (states, other_states) = states.split_at_mut(rows);
        let (sums, other_sums) = sums.split_at_mut(rows * width);
        let others = other_states.chunks_exact(rows).zip(other_sums.chunks_exact_mut(rows * width));
        for (other_states, other_sums) in others {
            for (row, (state, other)) in states.iter_mut().zip(other_states).enumerate() {
                if other.sum == T::acc(0.0) {
                    continue;
                }
                let max = Float::max(state.max, other.max);
                let factors = ((state.max - max).exp(), (other.max - max).exp());
                let (sums, others) = (&mut sums[row * width..][..width], &mut other_sums[row * width..][..width]);
                T::Acc::row_scale(simd, sums, factors.0);
                T::Acc::row_scale(simd, others, factors.1);
                T::Acc::row_add(simd, sums, others);
                (state.max, state.sum) = (max, state.sum * factors.0 + other.sum * factors.1);
            }
        }
        written.write(sums, width, states);
    }
}
