//! What both passes read.

use candle_core::Result;

use super::arithmetic::{Arithmetic, Tiles};
use super::mask::Mask;
use super::source::{Heads, Operand, Tables};
use crate::attention::geometry::Geometry;
use crate::attention::node::Attention;
use crate::cpu::{Element, read};

/// The operands of one attention.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, T: Element> {
    pub(super) geometry: Geometry,
    pub(super) q: Heads<'a, T>,
    pub(super) k: Heads<'a, T>,
    pub(super) v: Heads<'a, T>,
    pub(super) tables: Option<Tables<'a, T::Acc>>,
    pub(super) mask: &'a Mask<'a, T::Acc>,
    pub(super) scale: Scale<T::Acc>,
    pub(super) tiles: Tiles,
}

/// What the scores are multiplied with, in two parts of which one is 1.
#[derive(Clone, Copy)]
pub(super) struct Scale<A> {
    /// Of the queries.
    pub(super) query: A,
    /// Of the scores, positive: the largest score is the largest one still, and what is hidden stays hidden.
    pub(super) score: A,
}

impl<A: Arithmetic> Scale<A> {
    pub(super) fn of(scale: A) -> Self {
        if scale > A::zero() { Self { query: A::one(), score: scale } } else { Self { query: scale, score: A::one() } }
    }

    pub(super) fn whole(self) -> A {
        self.query * self.score
    }
}

/// Calls `f` with the operands borrowed. `block` is what [`Mask::new`] asks for.
pub(super) fn with_inputs<T: Element, R>(
    op: &Attention,
    block: usize,
    f: impl FnOnce(Inputs<'_, T>) -> Result<R>,
) -> Result<R>
where
    T::Acc: Arithmetic,
{
    let geometry = op.geometry;
    let operand = |tensor, width| Operand::of(tensor, geometry.arrangement, width);
    let (q, k) = (operand(&op.q, geometry.head_dim)?, operand(&op.k, geometry.head_dim)?);
    let v = operand(&op.v, geometry.value_dim)?;
    let rotary =
        op.rotary.as_ref().map(|(cos, sin)| Ok::<_, candle_core::Error>((read(cos)?, read(sin)?))).transpose()?;
    let tables = match (&rotary, &op.rotary) {
        (Some((cos, sin)), Some((shape, _))) => {
            let half = geometry.head_dim / 2;
            let batch = if shape.rank() == 3 { geometry.keys * half } else { 0 };
            Some(Tables { cos: cos.as_slice()?, sin: sin.as_slice()?, half, batch })
        }
        _ => None,
    };
    let mask = Mask::new(&op.visibility, geometry.keys, block)?;
    let (q, k, v) = (q.heads()?, k.heads()?, v.heads()?);
    let (scale, tiles) = (Scale::of(T::acc(op.scale)), Tiles::of::<T::Acc>());
    f(Inputs { geometry, q, k, v, tables, mask: &mask, scale, tiles })
}

impl<T: Element> Inputs<'_, T>
where
    T::Acc: Arithmetic,
{
    /// A query, rotated and times its part of the scale.
    #[inline(always)]
    pub(super) fn load_query(&self, batch: usize, head: usize, query: usize, out: &mut [T::Acc]) {
        widen(self.q.row(batch, head, query), out);
        if let Some(tables) = &self.tables {
            tables.rotate::<T>(batch, self.position(query), out);
        }
        if self.scale.query != T::acc(1.0) {
            out.iter_mut().for_each(|x| *x *= self.scale.query);
        }
    }

    /// A key, rotated; zeros where no query sees it, whatever it holds.
    #[inline(always)]
    pub(super) fn load_key(&self, batch: usize, head: usize, key: usize, out: &mut [T::Acc]) {
        if self.mask.hides(batch, key) {
            return out.fill(T::acc(0.0));
        }
        widen(self.k.row(batch, head, key), out);
        if let Some(tables) = &self.tables {
            tables.rotate::<T>(batch, key, out);
        }
    }

    /// A value; zeros where no query sees it, whatever it holds.
    #[inline(always)]
    pub(super) fn load_value(&self, batch: usize, head: usize, key: usize, out: &mut [T::Acc]) {
        if self.mask.hides(batch, key) {
            return out.fill(T::acc(0.0));
        }
        widen(self.v.row(batch, head, key), out);
    }

    /// The gradient of a query, rounded, and its rotation undone.
    #[inline(always)]
    pub(super) fn store_query(&self, batch: usize, query: usize, row: &[T::Acc], out: &mut [T]) {
        match &self.tables {
            Some(tables) => tables.unrotate(batch, self.position(query), &row[..out.len()], out),
            None => narrow(row, out),
        }
    }

    /// The gradient of a key, rounded, and its rotation undone.
    #[inline(always)]
    pub(super) fn store_key(&self, batch: usize, key: usize, row: &[T::Acc], out: &mut [T]) {
        match &self.tables {
            Some(tables) => tables.unrotate(batch, key, &row[..out.len()], out),
            None => narrow(row, out),
        }
    }

    /// The row of the rotary tables that a query stands at.
    #[inline(always)]
    fn position(&self, query: usize) -> usize {
        self.geometry.keys - self.geometry.queries + query
    }
}

#[inline(always)]
pub(super) fn widen<T: Element>(row: &[T], out: &mut [T::Acc]) {
    out.iter_mut().zip(row).for_each(|(out, x)| *out = x.widen());
}

#[inline(always)]
pub(super) fn narrow<T: Element>(row: &[T::Acc], out: &mut [T]) {
    out.iter_mut().zip(row).for_each(|(out, &x)| *out = T::narrow(x));
}
