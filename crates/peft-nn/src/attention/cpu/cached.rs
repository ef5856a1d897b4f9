//! New tokens against the pages of their sequences, which are laid out for the products already.

use std::ops::Range;

use candle_core::Result;
use pulp::{Simd, WithSimd};

use super::arithmetic::{Arithmetic, Lhs, Out, Panels, Tiles};
use super::forward::{RowState, absorb};
use super::inputs::{Scale, narrow, widen};
use super::scores::hide;
use super::shared::Rows;
use super::source::{Heads, Operand, Tables};
use super::tasks::{SMALL, for_each_task};
use crate::attention::cached::{CachedAttention, CachedPass, InPages, KeyValueCache, Memory, PagePointers, Part};
use crate::attention::geometry::Geometry;
use crate::cpu::simd::dispatch;
use crate::cpu::{Element, dispatch_float, read, value};
use crate::graph::Value;

const PAGE: usize = KeyValueCache::PAGE;
/// Queries of each head of a task.
const QUERIES: usize = 48;

pub(in crate::attention) fn forward(
    op: &CachedAttention,
    memory: &mut Memory,
    pass: &CachedPass,
    layer: usize,
) -> Result<Value> {
    dispatch_float!("cached-attention", op.q, T => forward_typed::<T>(op, memory, pass, layer))
}

fn forward_typed<T: InPages>(
    op: &CachedAttention,
    memory: &mut Memory,
    pass: &CachedPass,
    layer: usize,
) -> Result<Value>
where
    T::Acc: Arithmetic,
{
    let g = op.geometry;
    let Some(pages) = T::pages(memory) else {
        candle_core::bail!("cached-attention: the pages are not of {}", op.q.dtype().as_str())
    };
    let pages = pages.layer(layer);
    let operand = |tensor, width| Operand::of(tensor, g.arrangement, width);
    let (q, k, v) = (operand(&op.q, g.head_dim)?, operand(&op.k, g.head_dim)?, operand(&op.v, g.value_dim)?);
    let rotary =
        op.rotary.as_ref().map(|(cos, sin)| Ok::<_, candle_core::Error>((read(cos)?, read(sin)?))).transpose()?;
    let tables = match &rotary {
        Some((cos, sin)) => Some(Tables { cos: cos.as_slice()?, sin: sin.as_slice()?, half: g.head_dim / 2, batch: 0 }),
        None => None,
    };
    let (scale, tiles) = (Scale::of(T::acc(op.scale)), Tiles::of::<T::Acc>());
    let mut out = vec![T::zero(); g.queries * g.heads * g.value_dim];
    let kernel = Kernel {
        geometry: g,
        q: q.heads::<T>()?,
        k: k.heads()?,
        v: v.heads()?,
        tables,
        scale,
        tiles,
        pages: &pages,
        out: &Rows::of(&mut out, g.value_dim),
    };
    kernel.run(pass.parts());
    Ok(value(out, g.output_shape()))
}

/// What all tasks share.
#[derive(Clone, Copy)]
struct Kernel<'a, T: Element> {
    geometry: Geometry,
    q: Heads<'a, T>,
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    tables: Option<Tables<'a, T::Acc>>,
    scale: Scale<T::Acc>,
    tiles: Tiles,
    pages: &'a PagePointers<'a, T>,
    out: &'a Rows<'a, T>,
}

impl<T: InPages> Kernel<'_, T>
where
    T::Acc: Arithmetic,
{
    fn run(self, parts: &[Part]) {
        let g = self.geometry;
        let seen: usize = parts.iter().map(|part| part.tokens.len() * (part.past + part.tokens.len())).sum();
        let parallel = seen * g.heads * (g.head_dim + g.value_dim) > SMALL;
        // The keys and values of several tokens are all there before any of their queries is answered.
        let several: Vec<&Part> = parts.iter().filter(|part| part.tokens.len() > 1).collect();
        for_each_task(several.len() * g.kv_heads, parallel, |index| {
            let (head, part) = (index / several.len(), several[index % several.len()]);
            // SAFETY: no other task has this part and head, and a sequence's pages from its end on are its own.
            unsafe { self.store(part, head) };
        });
        // The last queries of a sequence see the most keys.
        let blocks = |part: &Part| (0..part.tokens.len()).step_by(QUERIES).rev();
        let blocks = parts.iter().flat_map(|part| blocks(part).map(move |first| (part, first)));
        let blocks: Vec<(&Part, Range<usize>)> =
            blocks.map(|(part, first)| (part, first..part.tokens.len().min(first + QUERIES))).collect();
        // Head by head: sequences that share a page come one after another.
        for_each_task(blocks.len() * g.kv_heads, parallel, |index| {
            let (head, (part, queries)) = (index / blocks.len(), &blocks[index % blocks.len()]);
            if part.tokens.len() == 1 {
                // SAFETY: as above; this is the only task that reads what is stored.
                unsafe { self.store(part, head) };
            }
            dispatch(Task { kernel: self, part, head, queries: queries.clone() });
        });
    }

    /// Writes the keys and values of new tokens.
    ///
    /// # Safety
    /// Nobody else has this head of the pages from the sequence's end on.
    unsafe fn store(&self, part: &Part, head: usize) {
        let (g, tiles) = (self.geometry, self.tiles);
        let mut row = T::Acc::buffer(g.head_dim);
        for (i, token) in part.tokens.clone().enumerate() {
            let (page, slot) = ((part.past + i) / PAGE, (part.past + i) % PAGE);
            // SAFETY: the caller's promise.
            let (keys, values) = unsafe { self.pages.write(part.pages[page], head) };
            widen(self.k.row(0, head, token), &mut row);
            if let Some(tables) = &self.tables {
                tables.rotate::<T>(0, token, &mut row);
            }
            let start = slot / tiles.panel * tiles.panel * g.head_dim + slot % tiles.panel;
            for (out, &x) in keys[start..].iter_mut().step_by(tiles.panel).zip(row.iter()) {
                *out = T::narrow(x);
            }
            let width = tiles.padded(g.value_dim);
            for (i, part) in self.v.row(0, head, token).chunks(tiles.panel).enumerate() {
                let panel = tiles.panel.min(width - i * tiles.panel);
                values[i * tiles.panel * PAGE + slot * panel..][..part.len()].copy_from_slice(part);
            }
        }
    }
}

/// Some queries of one group of heads against the keys of their sequence.
struct Task<'a, T: Element> {
    kernel: Kernel<'a, T>,
    part: &'a Part,
    /// Of the keys.
    head: usize,
    /// Counted from the first new one.
    queries: Range<usize>,
}

impl<T: InPages> WithSimd for Task<'_, T>
where
    T::Acc: Arithmetic,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { kernel, part, head, queries } = self;
        let Kernel { geometry: g, tables, scale, .. } = kernel;
        let tiles = T::Acc::tiles::<S>();
        let (group, width) = (g.group(), tiles.padded(g.value_dim));
        // The rows of a query stand together: what the rows see grows.
        let rows = queries.len() * group;
        let token = |row: usize| part.tokens.start + queries.start + row / group;
        let seen = |row: usize| part.past + queries.start + row / group + 1;
        let mut q = T::Acc::buffer(rows * g.head_dim);
        for (row, q) in q.chunks_exact_mut(g.head_dim).enumerate() {
            widen(kernel.q.row(0, head * group + row % group, token(row)), q);
            if let Some(tables) = &tables {
                tables.rotate::<T>(0, token(row), q);
            }
            if scale.query != T::acc(1.0) {
                q.iter_mut().for_each(|x| *x *= scale.query);
            }
        }
        let mut sums = T::Acc::buffer(rows * width);
        sums.fill(T::acc(0.0));
        let mut states = vec![RowState::<T::Acc>::default(); rows];
        let mut scores = T::Acc::buffer(tiles.rows * PAGE);
        let mut widened = [const { Vec::new() }; 2];
        for (index, &page) in part.pages.iter().enumerate().take(seen(rows - 1).div_ceil(PAGE)) {
            // SAFETY: whoever stores in this head of this page did so before, in this task or before all of them.
            let (keys, values) = unsafe { kernel.pages.read(page, head) };
            let in_page = |row: usize| seen(row).saturating_sub(index * PAGE).min(PAGE);
            let [of_keys, of_values] = &mut widened;
            let most = in_page(rows - 1).next_multiple_of(tiles.panel) * g.head_dim;
            let keys = T::widened_row(&keys[..most], of_keys);
            let values = T::widened_row(values, of_values);
            for first in (0..rows).step_by(tiles.rows) {
                let height = tiles.rows.min(rows - first);
                let depth = in_page(first + height - 1);
                if depth == 0 {
                    continue;
                }
                let columns = depth.next_multiple_of(tiles.panel);
                let lhs = Lhs { elements: &q[first * g.head_dim..], row: g.head_dim, depth: 1 };
                let panels = Panels { elements: keys, rows: g.head_dim, from: 0, columns };
                let out = Out { elements: &mut scores, stride: PAGE, add: false };
                T::Acc::product(simd, height, g.head_dim, lhs, panels, out);
                for i in 0..height {
                    hide(simd, &mut scores[i * PAGE..][..columns], [0..in_page(first + i), 0..0], None);
                }
                let (states, sums) = (&mut states[first..first + height], &mut sums[first * width..]);
                absorb(simd, (&mut scores, PAGE, columns), scale.score, states, sums, width);
                let lhs = Lhs { elements: &scores, row: PAGE, depth: 1 };
                let panels = Panels { elements: values, rows: PAGE, from: 0, columns: width };
                T::Acc::product(simd, height, depth, lhs, panels, Out { elements: sums, stride: width, add: true });
            }
        }
        for (row, state) in states.iter().enumerate() {
            // SAFETY: no other task has this token and head.
            let out = unsafe { kernel.out.row(token(row) * g.heads + head * group + row % group) };
            let sums = &mut sums[row * width..][..g.value_dim];
            sums.iter_mut().for_each(|sum| *sum /= state.sum);
            narrow(sums, out);
        }
    }
}
