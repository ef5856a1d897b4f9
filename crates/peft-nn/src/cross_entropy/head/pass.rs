//! The positions that count, a block at a time: their logits, losses and gradients.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::Result;

use super::inputs::{Counted, Inputs, Matrices, Wanted};
use super::parts::{Parts, Sums};
use super::product::{Multiply, Side};
use super::rows::{Become, Blend, Position, read};
use crate::cpu::simd::CHUNK;
use crate::cpu::{Element, for_each_row};

/// Positions of a block: enough to read the weight rarely.
const POSITIONS: usize = if cfg!(test) { 24 } else { 512 };
/// Logits that exist at a time where a block goes through the vocabulary piece by piece: 4 MiB in f32, little enough for a cache that all
/// cores share, and with few positions enough that threads do not wait for each other often. Fewer where unit tests shall see many pieces.
const LOGITS: usize = if cfg!(test) { 1 << 12 } else { 1 << 20 };
/// Entries in a piece are a multiple of this, so that losses have the same bits however large the pieces are.
const MULTIPLE: usize = if cfg!(test) { 64 } else { CHUNK };
/// Logits that exist at a time where a gradient has a part for each entry of the vocabulary, in f32 28 MiB; from 32 on an allocator asks
/// the system for fresh pages every time. Where the gradient of the weight is kept anyway, half as many as it has elements are allowed:
/// each block adds to all of it.
const WHOLE_LOGITS: usize = if cfg!(test) { 1 << 14 } else { 7 << 20 };
/// The fewest positions of a block whose logits exist as a whole.
const FEWEST: usize = if cfg!(test) { 4 } else { 32 };

/// How many positions a block has, and how many entries of the vocabulary a piece.
struct Sizes {
    positions: usize,
    entries: usize,
}

impl Sizes {
    fn new<T: Element>(matrices: &Matrices<'_, T>, counted: usize, wanted: Wanted) -> Self {
        let &Matrices { vocabulary, hidden_size, .. } = matrices;
        if wanted.of_entries() || !matrices.weight.has_contiguous_rows() {
            let logits = if wanted.weight { WHOLE_LOGITS.max(vocabulary * hidden_size / 2) } else { WHOLE_LOGITS };
            return Self { positions: FEWEST.max(logits / vocabulary.max(1)), entries: vocabulary.max(1) };
        }
        // Of a wide model fewer, so that their hidden states take no more than their logits.
        let positions = counted.clamp(1, POSITIONS.min(FEWEST.max(LOGITS / hidden_size.max(1))));
        let entries = (LOGITS / positions / MULTIPLE).max(1) * MULTIPLE;
        Self { positions, entries: entries.min(vocabulary.max(1)) }
    }
}

/// What is found at each position that counts, and the gradients of the sum of the losses, each times its factor if there are any.
pub(super) fn pass<T: Multiply>(
    inputs: &Inputs,
    factors: Option<&[T::Acc]>,
    wanted: Wanted,
) -> Result<(Vec<Position>, Parts)> {
    #[cfg(test)]
    tests::PASSES.with(|passes| passes.set(passes.get() + 1));
    inputs.with_matrices(|matrices| {
        let sizes = Sizes::new(matrices, inputs.counted.len(), wanted);
        let mut sums = Sums::<T>::new(matrices, inputs.counted.len(), wanted);
        let mut found = Vec::with_capacity(inputs.counted.len());
        let mut logits = vec![];
        for counted in inputs.counted.chunks(sizes.positions) {
            let factors = factors.map(|factors| &factors[found.len()..][..counted.len()]);
            let mut positions: Vec<_> = counted.iter().map(|counted| Position::new(*counted, inputs.options)).collect();
            let block = Block::new(inputs, matrices, counted)?;
            if wanted.of_entries() {
                logits.resize(counted.len() * matrices.vocabulary, T::zero());
                block.logits(&mut logits, 0..matrices.vocabulary)?;
                read(&mut positions, &mut logits, 0, Become::Gradients(factors));
                sums.add_entries(inputs.layout, &block, &logits)?;
                let through_head = block.through_head(&logits, 0..matrices.vocabulary, wanted)?;
                sums.add_positions(&block, through_head)?;
            } else {
                let through_head = block.by_pieces(&mut positions, &mut logits, sizes.entries, wanted)?;
                let through_head = through_head.normalised(matrices, &positions, factors);
                sums.add_positions(&block, through_head)?;
            }
            found.extend(positions);
        }
        Ok((found, sums.finish()))
    })
}

/// Some of the positions that count.
pub(super) struct Block<'a, T: Multiply> {
    matrices: &'a Matrices<'a, T>,
    rows: usize,
    /// `(rows, hidden_size)`
    pub(super) hidden: Cow<'a, [T]>,
    packed: T::Packed,
    pub(super) change: Option<BlockChange<T>>,
}

/// What a low-rank change makes of hidden states.
pub(super) struct BlockChange<T: Multiply> {
    /// `h A^T`, `(rows, r)`.
    pub(super) low: Vec<T::Acc>,
    /// `scale * h A^T M^T`, `(rows, r)`.
    pub(super) mixed: Vec<T::Acc>,
    packed: T::Packed,
}

/// What gradients of logits become on the way back through the head.
pub(super) struct ThroughHead<A> {
    /// `g W`, `(rows, hidden_size)`.
    pub(super) weight: Option<Vec<A>>,
    /// `g B`, `(rows, r)`.
    pub(super) b: Option<Vec<A>>,
}

impl<'a, T: Multiply> Block<'a, T> {
    fn new(inputs: &Inputs, matrices: &'a Matrices<'a, T>, counted: &[Counted]) -> Result<Self> {
        let rows = counted.len();
        let hidden = inputs.gather(matrices.hidden, counted);
        let left = Side::of(&hidden, rows, matrices.hidden_size);
        let change = match &matrices.change {
            None => None,
            Some(change) => {
                let low = T::new_product(&left, &change.a.t())?;
                let mut mixed = match &change.mixing {
                    Some(mixing) => T::new_product(&Side::of(&low, rows, change.rank), &mixing.t())?,
                    None => low.clone(),
                };
                mixed.iter_mut().for_each(|x| *x *= T::acc(change.scale));
                let packed = T::pack(&Side::of(&mixed, rows, change.rank))?;
                Some(BlockChange { low, mixed, packed })
            }
        };
        Ok(Self { matrices, rows, packed: T::pack(&left)?, hidden, change })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The logits of some entries, `(rows, entries)`.
    fn logits(&self, out: &mut [T], entries: Range<usize>) -> Result<()> {
        let mut terms = vec![(&self.packed, self.matrices.weight.rows(entries.clone())?)];
        if let (Some(own), Some(change)) = (&self.change, &self.matrices.change) {
            terms.push((&own.packed, change.b.rows(entries.clone())?));
        }
        T::by_rows(out, &terms, self.matrices.bias.map(|bias| &bias[entries]))
    }

    fn through_head(&self, gradients: &[T], entries: Range<usize>, wanted: Wanted) -> Result<ThroughHead<T::Acc>> {
        let gradients = Side::of(gradients, self.rows, entries.len());
        let through = |right: &Side<'_>| T::new_product(&gradients, &right.rows(entries.clone())?);
        let change = self.matrices.change.as_ref().filter(|_| wanted.hidden || wanted.a || wanted.mixing);
        Ok(ThroughHead {
            weight: wanted.hidden.then(|| through(&self.matrices.weight)).transpose()?,
            b: change.map(|change| through(&change.b)).transpose()?,
        })
    }

    /// Goes through the vocabulary once. What comes back is made of exponentials and not of gradients yet.
    fn by_pieces(
        &self,
        positions: &mut [Position],
        logits: &mut Vec<T>,
        entries: usize,
        wanted: Wanted,
    ) -> Result<ThroughHead<T::Acc>> {
        let become_ = if wanted.any() { Become::Exponentials } else { Become::Read };
        let mut sums = ThroughHead { weight: None, b: None };
        let vocabulary = self.matrices.vocabulary;
        logits.resize(self.rows * entries.min(vocabulary), T::zero());
        for first in (0..vocabulary).step_by(entries) {
            let piece = first..vocabulary.min(first + entries);
            let logits = &mut logits[..self.rows * piece.len()];
            self.logits(logits, piece.clone())?;
            read(positions, logits, first, become_);
            if wanted.any() {
                let ThroughHead { weight, b } = self.through_head(logits, piece, wanted)?;
                add_corrected(&mut sums.weight, weight, positions);
                add_corrected(&mut sums.b, b, positions);
            }
        }
        Ok(sums)
    }
}

/// Adds the rows of `terms`, and before that corrects those that are there.
fn add_corrected<A: Element>(sums: &mut Option<Vec<A>>, terms: Option<Vec<A>>, positions: &[Position]) {
    match (sums, terms) {
        (Some(sums), Some(terms)) => {
            let width = terms.len() / positions.len().max(1);
            for_each_row(sums, width, |i, row| {
                Blend { by: positions[i].correction, times: 1.0 }.rows(row, &terms[i * width..][..width]);
            });
        }
        (sums, terms) => *sums = terms,
    }
}

impl<A: Element<Acc = A>> ThroughHead<A> {
    /// Exponentials as gradients: divided by their sum, with the part of the target, times the factors.
    fn normalised<T: Multiply<Acc = A>>(
        self,
        matrices: &Matrices<'_, T>,
        positions: &[Position],
        factors: Option<&[A]>,
    ) -> Self {
        let blend = |i: usize| {
            let factor = positions[i].scale() * factors.map_or(1.0, |factors| factors[i].to_f64());
            Blend { by: positions[i].normaliser() * factor, times: positions[i].target_gradient() * factor }
        };
        let Self { mut weight, mut b } = self;
        if let Some(rows) = &mut weight {
            let width = matrices.hidden_size;
            for_each_row(rows, width, |i, row| {
                blend(i).rows(row, matrices.weight_row(positions[i].target(), &mut vec![]));
            });
        }
        if let (Some(rows), Some(change)) = (&mut b, &matrices.change) {
            for_each_row(rows, change.rank, |i, row| {
                blend(i).rows(row, change.b_row(positions[i].target()));
            });
        }
        Self { weight, b }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// How often this thread has computed logits.
        pub(in super::super) static PASSES: Cell<usize> = const { Cell::new(0) };
    }
}
