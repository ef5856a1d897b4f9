//! What some keys of one head contribute to the gradients, from probabilities that are computed again.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::arithmetic::{Arithmetic, Lhs, Normaliser, Out, Panels};
use super::backward::Upstream;
use super::inputs::{Inputs, narrow, widen};
use super::pack;
use super::scores::{Window, hide, intersection};
use super::shared::Rows;
use crate::cpu::Element;

/// Queries of a block: whole tiles of any height.
const QUERIES: usize = 48;
/// Keys of a block: they, their values and the sums of their gradients stay in the second-level cache while all queries
/// that see them go by.
pub(super) const KEYS: usize = 384;

pub(super) struct KeysTask<'a, T: Element> {
    pub(super) inputs: Inputs<'a, T>,
    pub(super) upstream: Upstream<'a, T>,
    /// `(batch, heads, queries)`
    pub(super) dots: &'a [T::Acc],
    pub(super) batch: usize,
    /// Of the keys.
    pub(super) head: usize,
    pub(super) keys: Range<usize>,
    /// The first query that sees one of them.
    pub(super) first: usize,
    /// `(group, queries that see one of them, padded head_dim)`
    pub(super) dq: Option<&'a mut [T::Acc]>,
    pub(super) dk: Option<&'a Rows<'a, T>>,
    pub(super) dv: Option<&'a Rows<'a, T>>,
}

impl<T: Element> WithSimd for KeysTask<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if let Some(dq) = &mut self.dq {
            dq.fill(T::acc(0.0));
        }
        let mut buffers = Buffers::new::<T, S>(&self);
        for start in self.keys.clone().step_by(KEYS) {
            let block = start..self.keys.end.min(start + KEYS);
            self.load_keys(simd, &block, &mut buffers);
            let seeing = self.inputs.mask.queries_of(self.batch, block.clone());
            for from in seeing.clone().step_by(QUERIES) {
                let queries = from..seeing.end.min(from + QUERIES);
                for of_group in 0..self.inputs.geometry.group() {
                    self.load_queries::<S>(of_group, &queries, &mut buffers);
                    for first in (0..queries.len()).step_by(T::Acc::tiles::<S>().rows) {
                        self.tile(simd, of_group, &queries, first, &block, &mut buffers);
                    }
                    self.sum_keys(simd, &queries, &block, &mut buffers);
                }
            }
            self.store(simd, &block, &mut buffers);
        }
    }
}

/// Empty where nobody wants what they are for.
struct Buffers<A: Arithmetic> {
    head_width: usize,
    value_width: usize,
    /// Columns of `p` and `ds`.
    stride: usize,
    /// Keys and values, transposed panels.
    k_columns: A::Memory,
    v_columns: A::Memory,
    /// Keys, panels.
    k_rows: A::Memory,
    /// Queries and gradients of the output: rows, and the same as panels.
    q: A::Memory,
    q_rows: A::Memory,
    grad: A::Memory,
    grad_rows: A::Memory,
    /// Scores, then probabilities; and their gradients, `(queries, keys)`.
    p: A::Memory,
    ds: A::Memory,
    /// The gradients of keys and values.
    dk: A::Memory,
    dv: A::Memory,
}

impl<A: Arithmetic> Buffers<A> {
    #[inline(always)]
    fn new<T: Element<Acc = A>, S: Simd>(task: &KeysTask<'_, T>) -> Self {
        let (g, tiles) = (task.inputs.geometry, A::tiles::<S>());
        let (head_width, value_width) = (tiles.padded(g.head_dim), tiles.padded(g.value_dim));
        let stride = KEYS.min(tiles.padded(task.keys.len()));
        let buffer = |wanted: bool, len: usize| A::buffer(if wanted { len } else { 0 });
        let (wants_q, wants_k, wants_v) = (task.dq.is_some(), task.dk.is_some(), task.dv.is_some());
        let (mut q, mut grad) = (buffer(true, QUERIES * head_width), buffer(true, QUERIES * value_width));
        // The columns beyond the last one.
        q.fill(A::zero());
        grad.fill(A::zero());
        Self {
            head_width,
            value_width,
            stride,
            k_columns: buffer(true, stride * g.head_dim),
            v_columns: buffer(wants_q || wants_k, stride * g.value_dim),
            k_rows: buffer(wants_q, stride * head_width),
            q,
            q_rows: buffer(wants_k, QUERIES * head_width),
            grad,
            grad_rows: buffer(wants_v, QUERIES * value_width),
            p: buffer(true, QUERIES * stride),
            ds: buffer(wants_q || wants_k, QUERIES * stride),
            dk: buffer(wants_k, stride * head_width),
            dv: buffer(wants_v, stride * value_width),
        }
    }
}

impl<T: Element> KeysTask<'_, T>
where
    T::Acc: Arithmetic,
{
    #[inline(always)]
    fn load_keys<S: Simd>(&self, simd: S, block: &Range<usize>, buffers: &mut Buffers<T::Acc>) {
        let Self { inputs, batch, head, .. } = self;
        let g = inputs.geometry;
        let load_key = |i: usize, row: &mut [T::Acc]| inputs.load_key(*batch, *head, block.start + i, row);
        let load_value = |i: usize, row: &mut [T::Acc]| inputs.load_value(*batch, *head, block.start + i, row);
        pack::transposed(simd, block.len(), g.head_dim, &mut buffers.k_columns, load_key);
        if !buffers.v_columns.is_empty() {
            pack::transposed(simd, block.len(), g.value_dim, &mut buffers.v_columns, load_value);
        }
        if !buffers.k_rows.is_empty() {
            pack::straight(simd, block.len(), g.head_dim, &mut buffers.k_rows, load_key);
        }
        buffers.dk.fill(T::acc(0.0));
        buffers.dv.fill(T::acc(0.0));
    }

    #[inline(always)]
    fn load_queries<S: Simd>(&self, of_group: usize, queries: &Range<usize>, buffers: &mut Buffers<T::Acc>) {
        let Self { inputs, upstream, batch, .. } = self;
        let Buffers { head_width, value_width, q, q_rows, grad, grad_rows, .. } = buffers;
        let (g, count) = (inputs.geometry, queries.len());
        let head = self.head * g.group() + of_group;
        for (i, query) in queries.clone().enumerate() {
            let row = &mut q[i * *head_width..][..*head_width];
            inputs.load_query(*batch, head, query, &mut row[..g.head_dim]);
            if !q_rows.is_empty() {
                pack::lay_out::<_, S>(row, i, count, q_rows);
            }
            let row = &mut grad[i * *value_width..][..*value_width];
            widen(upstream.grad.row(*batch, head, query), row);
            if !grad_rows.is_empty() {
                pack::lay_out::<_, S>(row, i, count, grad_rows);
            }
        }
    }

    /// Probabilities and their gradients of the queries of a tile, and what those add to the gradients of the queries.
    #[inline(always)]
    fn tile<S: Simd>(
        &mut self,
        simd: S,
        of_group: usize,
        queries: &Range<usize>,
        first: usize,
        block: &Range<usize>,
        buffers: &mut Buffers<T::Acc>,
    ) {
        let (g, tiles, mask) = (self.inputs.geometry, T::Acc::tiles::<S>(), self.inputs.mask);
        let Buffers { head_width, value_width, stride, k_columns, v_columns, k_rows, q, grad, p, ds, .. } = buffers;
        let (head_width, value_width, stride) = (*head_width, *value_width, *stride);
        let height = tiles.rows.min(queries.len() - first);
        let of_row = |i: usize| mask.keys_of(self.batch, queries.start + first + i);
        let Some(window) = Window::new(tiles, (0..height).map(of_row), block) else { return };
        let columns = window.columns.clone();

        let lhs = Lhs { elements: &q[first * head_width..], row: head_width, depth: 1 };
        let elements = &k_columns[columns.start * g.head_dim..];
        let panels = Panels { elements, rows: g.head_dim, from: 0, columns: columns.len() };
        let out = Out { elements: &mut p[first * stride + columns.start..], stride, add: false };
        T::Acc::product(simd, height, g.head_dim, lhs, panels, out);
        if !ds.is_empty() {
            let lhs = Lhs { elements: &grad[first * value_width..], row: value_width, depth: 1 };
            let elements = &v_columns[columns.start * g.value_dim..];
            let panels = Panels { elements, rows: g.value_dim, from: 0, columns: columns.len() };
            let out = Out { elements: &mut ds[first * stride + columns.start..], stride, add: false };
            T::Acc::product(simd, height, g.value_dim, lhs, panels, out);
        }
        let terms = mask.terms(self.batch, block.start + columns.start);
        let of_head = (self.batch * g.heads + self.head * g.group() + of_group) * g.queries + queries.start;
        for i in first..first + height {
            let p = &mut p[i * stride..][..stride];
            hide(simd, &mut p[columns.clone()], window.of_query(mask, self.batch, queries.start + i), terms);
            let [shift, inverse] = self.upstream.normalisers[of_head + i];
            let normaliser = Normaliser { factor: self.inputs.scale.score, shift, inverse };
            if ds.is_empty() {
                T::Acc::row_exp(simd, &mut p[columns.clone()], normaliser.factor, shift);
                T::Acc::row_scale(simd, &mut p[columns.clone()], inverse);
            } else {
                let ds = &mut ds[i * stride..][..stride];
                let (scores, grads) = (&mut p[columns.clone()], &mut ds[columns.clone()]);
                T::Acc::row_gradient(simd, scores, grads, normaliser, self.dots[of_head + i]);
                zero_around(ds, &columns);
            }
            zero_around(p, &columns);
        }
        if let Some(dq) = &mut self.dq {
            let of_query = dq.len() / head_width / g.group() * of_group + queries.start - self.first + first;
            let lhs = Lhs { elements: &ds[first * stride + window.seen.start..], row: stride, depth: 1 };
            let panels = Panels { elements: k_rows, rows: block.len(), from: window.seen.start, columns: head_width };
            let out = Out { elements: &mut dq[of_query * head_width..], stride: head_width, add: true };
            T::Acc::product(simd, height, window.seen.len(), lhs, panels, out);
        }
    }

    /// What a block of queries adds to the gradients of keys and values.
    #[inline(always)]
    fn sum_keys<S: Simd>(&self, simd: S, queries: &Range<usize>, block: &Range<usize>, buffers: &mut Buffers<T::Acc>) {
        let tiles = T::Acc::tiles::<S>();
        let Buffers { head_width, value_width, stride, q_rows, grad_rows, p, ds, dk, dv, .. } = buffers;
        let rows = queries.len();
        for first in (0..block.len()).step_by(tiles.rows) {
            let height = tiles.rows.min(block.len() - first);
            let keys = block.start + first..block.start + first + height;
            let seeing = intersection(&self.inputs.mask.queries_of(self.batch, keys), queries);
            if seeing.is_empty() {
                continue;
            }
            let (from, depth) = (seeing.start - queries.start, seeing.len());
            let add = |probabilities: &[T::Acc], panels: &[T::Acc], width: usize, sums: &mut [T::Acc]| {
                let lhs = Lhs { elements: &probabilities[from * *stride + first..], row: 1, depth: *stride };
                let panels = Panels { elements: panels, rows, from, columns: width };
                let out = Out { elements: &mut sums[first * width..], stride: width, add: true };
                T::Acc::product(simd, height, depth, lhs, panels, out);
            };
            if !dv.is_empty() {
                add(p, grad_rows, *value_width, dv);
            }
            if !dk.is_empty() {
                add(ds, q_rows, *head_width, dk);
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, block: &Range<usize>, buffers: &mut Buffers<T::Acc>) {
        let g = self.inputs.geometry;
        T::Acc::row_scale(simd, &mut buffers.dk, self.inputs.scale.score);
        for (i, key) in block.clone().enumerate() {
            let index = g.arrangement.row((self.batch, self.head, key), g.kv_heads, g.keys);
            if let Some(dk) = self.dk {
                let sums = &buffers.dk[i * buffers.head_width..];
                // SAFETY: no other task has this head and key.
                self.inputs.store_key(self.batch, key, sums, unsafe { dk.row(index) });
            }
            if let Some(dv) = self.dv {
                // SAFETY: as above.
                narrow(&buffers.dv[i * buffers.value_width..], unsafe { dv.row(index) });
            }
        }
    }
}

/// Keys that no query of a tile sees are read by the products with other tiles.
#[inline(always)]
fn zero_around<A: Arithmetic>(row: &mut [A], columns: &Range<usize>) {
    if columns.start > 0 {
        row[..columns.start].fill(A::zero());
    }
    if columns.end < row.len() {
        row[columns.end..].fill(A::zero());
    }
}
