//! Gradients of queries, keys and values: how they are split into tasks, and what the tasks have in common.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::arithmetic::Arithmetic;
use super::inputs::{Inputs, widen};
use super::keys_task::KeysTask;
use super::shared::Rows;
use super::source::Heads;
use super::tasks::{SMALL, for_each_task};
use crate::attention::geometry::Geometry;
use crate::cpu::Element;
use crate::cpu::simd::dispatch;

/// Tasks to aim for: enough for many threads. Those that share a head sum its queries' gradients apart from each other.
const TASKS: usize = 16;
/// Tasks that share a head at most, so that memory is linear in the number of keys.
const CHUNKS: usize = 8;
/// The keys of a task are a multiple of this: whole tiles and panels of any size.
const GRAIN: usize = 96;
/// Queries of a task that only goes over rows.
const ROWS: usize = 64;

/// What the backward pass reads besides the operands.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a, T: Element> {
    pub(super) grad: Heads<'a, T>,
    pub(super) output: Heads<'a, T>,
    /// `(batch, heads, queries)`
    pub(super) normalisers: &'a [[T::Acc; 2]],
}

/// The gradients that are wanted, in the operands' arrangement.
pub(super) struct Gradients<T> {
    pub(super) q: Option<Vec<T>>,
    pub(super) k: Option<Vec<T>>,
    pub(super) v: Option<Vec<T>>,
}

pub(super) fn backward<T: Element>(
    inputs: Inputs<'_, T>,
    upstream: Upstream<'_, T>,
    [wants_q, wants_k, wants_v]: [bool; 3],
) -> Gradients<T>
where
    T::Acc: Arithmetic,
{
    let g = inputs.geometry;
    let parallel = g.work() > SMALL;
    let zeros = |wanted: bool, len: usize| wanted.then(|| vec![T::zero(); len]);
    let mut dq = zeros(wants_q, g.batch * g.heads * g.queries * g.head_dim);
    let mut dk = zeros(wants_k, g.batch * g.kv_heads * g.keys * g.head_dim);
    let mut dv = zeros(wants_v, g.batch * g.kv_heads * g.keys * g.value_dim);
    let mut dots = vec![T::acc(0.0); g.batch * g.heads * g.queries];

    let parts = g.queries.div_ceil(ROWS);
    let part = |index: usize| {
        let (head, part) = (index / parts, index % parts);
        (head / g.heads, head % g.heads, part * ROWS..g.queries.min((part + 1) * ROWS))
    };
    if wants_q || wants_k {
        let dots = Rows::of(&mut dots, 1);
        for_each_task(g.batch * g.heads * parts, parallel, |index| {
            let (batch, head, queries) = part(index);
            dispatch(DotsTask { inputs, upstream, batch, head, queries, dots: &dots });
        });
    }

    let chunks = Chunks::of(&g);
    let head_width = inputs.tiles.padded(g.head_dim);
    let entries = g.batch * g.kv_heads;
    let task = |index: usize| {
        // In causal attention the first keys are seen by the most queries.
        let (chunk, entry) = (index / entries, index % entries);
        let (batch, head) = (entry / g.kv_heads, entry % g.kv_heads);
        (batch, head, chunks.keys(chunk, g.keys))
    };
    let tasks = chunks.count * entries;
    let seeing: Vec<Range<usize>> = (0..tasks)
        .map(|index| {
            let (batch, _, keys) = task(index);
            inputs.mask.queries_of(batch, keys)
        })
        .collect();
    let len = |queries: &Range<usize>| if wants_q { g.group() * queries.len() * head_width } else { 0 };
    let mut partial = T::Acc::buffer(seeing.iter().map(len).sum());
    let mut rows = split(&mut partial, seeing.iter().map(len));
    {
        let rows = Rows::of(&mut rows, 1);
        let dk = dk.as_mut().map(|dk| Rows::of(dk, g.head_dim));
        let dv = dv.as_mut().map(|dv| Rows::of(dv, g.value_dim));
        for_each_task(tasks, parallel, |index| {
            let (batch, head, keys) = task(index);
            // SAFETY: every task has a row of its own.
            let slot = unsafe { rows.row(index) };
            let dq = slot.first_mut().filter(|_| wants_q).map(|rows| &mut **rows);
            let (first, dk, dv) = (seeing[index].start, dk.as_ref(), dv.as_ref());
            dispatch(KeysTask { inputs, upstream, dots: &dots, batch, head, keys, first, dq, dk, dv });
        });
    }

    if let Some(dq) = &mut dq {
        let dq = Rows::of(dq, g.head_dim);
        for_each_task(g.batch * g.heads * parts, parallel, |index| {
            let (batch, head, queries) = part(index);
            let of_entry = (batch * g.kv_heads + head / g.group()..tasks).step_by(entries);
            let partial = of_entry.map(|index| Partial { queries: seeing[index].clone(), rows: &*rows[index] });
            dispatch(QueriesTask { inputs, batch, head, queries, partial, dq: &dq });
        });
    }
    Gradients { q: dq, k: dk, v: dv }
}

/// Neighbouring parts of these lengths.
fn split<A>(mut elements: &mut [A], lens: impl Iterator<Item = usize>) -> Vec<&mut [A]> {
    lens.map(|len| {
        let (part, rest) = std::mem::take(&mut elements).split_at_mut(len);
        elements = rest;
        part
    })
    .collect()
}

/// The gradients of some queries, as far as they come from some keys.
struct Partial<'a, A> {
    queries: Range<usize>,
    /// `(group, queries, padded head_dim)`
    rows: &'a [A],
}

/// The keys of one head, split into tasks.
#[derive(Clone, Copy)]
struct Chunks {
    count: usize,
    /// Keys of each.
    keys: usize,
}

impl Chunks {
    fn of(g: &Geometry) -> Self {
        let wanted = TASKS.div_ceil((g.batch * g.kv_heads).max(1)).min(CHUNKS);
        let keys = g.keys.div_ceil(wanted).max(1).next_multiple_of(GRAIN);
        Self { count: g.keys.div_ceil(keys), keys }
    }

    fn keys(&self, chunk: usize, keys: usize) -> Range<usize> {
        chunk * self.keys..keys.min((chunk + 1) * self.keys)
    }
}

/// The inner products of gradient and output, of some queries of one head.
struct DotsTask<'a, T: Element> {
    inputs: Inputs<'a, T>,
    upstream: Upstream<'a, T>,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    dots: &'a Rows<'a, T::Acc>,
}

impl<T: Element> WithSimd for DotsTask<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, upstream, batch, head, queries, dots } = self;
        let g = inputs.geometry;
        let width = T::Acc::tiles::<S>().padded(g.value_dim);
        let mut rows = T::Acc::buffer(2 * width);
        rows.fill(T::acc(0.0));
        let (grad, output) = rows.split_at_mut(width);
        for query in queries {
            widen(upstream.grad.row(batch, head, query), grad);
            widen(upstream.output.row(batch, head, query), output);
            // SAFETY: no other task has this head and query.
            let dot = unsafe { dots.row((batch * g.heads + head) * g.queries + query) };
            dot[0] = T::Acc::row_dot(simd, grad, output);
        }
    }
}

/// The gradients of some queries of one head, in the order of the keys.
struct QueriesTask<'a, T: Element, P> {
    inputs: Inputs<'a, T>,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    partial: P,
    dq: &'a Rows<'a, T>,
}

impl<'a, T: Element, P: Iterator<Item = Partial<'a, T::Acc>> + Clone> WithSimd for QueriesTask<'a, T, P>
where
    T::Acc: Arithmetic + 'a,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, batch, head, queries, partial, dq } = self;
        let g = inputs.geometry;
        let width = T::Acc::tiles::<S>().padded(g.head_dim);
        let mut sum = T::Acc::buffer(width);
        for query in queries {
            sum.fill(T::acc(0.0));
            for Partial { queries, rows } in partial.clone() {
                if queries.contains(&query) {
                    let row = head % g.group() * queries.len() + query - queries.start;
                    T::Acc::row_add(simd, &mut sum, &rows[row * width..][..width]);
                }
            }
            T::Acc::row_scale(simd, &mut sum, inputs.scale.whole());
            let index = g.arrangement.row((batch, head, query), g.heads, g.queries);
            // SAFETY: no other task has this head and query.
            inputs.store_query(batch, query, &sum, unsafe { dq.row(index) });
        }
    }
}
