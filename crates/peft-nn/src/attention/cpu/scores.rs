//! The part of a block of scores that the queries of a tile see.

use std::ops::Range;

use pulp::Simd;

use super::arithmetic::{Arithmetic, Tiles};
use super::mask::Mask;

/// Columns of a block of keys, counted from its first key.
pub(super) struct Window {
    /// Those that a row sees.
    pub(super) seen: Range<usize>,
    /// Whole panels around them, to the end of the block at most.
    pub(super) columns: Range<usize>,
    /// The block's first key.
    pub(super) start: usize,
}

impl Window {
    /// `None` where no row sees any key of the block.
    #[inline(always)]
    pub(super) fn new(tiles: Tiles, rows: impl Iterator<Item = Range<usize>>, block: &Range<usize>) -> Option<Self> {
        let seen = intersection(&union(rows), block);
        if seen.is_empty() {
            return None;
        }
        let seen = seen.start - block.start..seen.end - block.start;
        let start = seen.start - seen.start % tiles.panel;
        let end = seen.end.next_multiple_of(tiles.panel).min(tiles.padded(block.len()));
        Some(Self { seen, columns: start..end, start: block.start })
    }

    /// Those of the columns that a query sees, but for the second ones; counted from the first column.
    #[inline(always)]
    pub(super) fn of_query<A: Arithmetic>(&self, mask: &Mask<'_, A>, batch: usize, query: usize) -> [Range<usize>; 2] {
        [self.columns_of(&mask.keys_of(batch, query)), self.columns_of(&mask.hole_of(query))]
    }

    #[inline(always)]
    fn columns_of(&self, keys: &Range<usize>) -> Range<usize> {
        let first = self.start + self.columns.start;
        let seen = intersection(keys, &(first..self.start + self.columns.end));
        seen.start - first..seen.end - first
    }
}

/// Makes the scores of a row that it does not see `-inf`: those outside `seen` and in the hole, and those that `terms` says.
#[inline(always)]
pub(super) fn hide<A: Arithmetic, S: Simd>(
    simd: S,
    row: &mut [A],
    [seen, hole]: [Range<usize>; 2],
    terms: Option<&[A]>,
) {
    // Most rows of most blocks see everything.
    if seen.start > 0 {
        row[..seen.start].fill(A::neg_infinity());
    }
    if seen.end < row.len() {
        row[seen.end..].fill(A::neg_infinity());
    }
    row[hole].fill(A::neg_infinity());
    if let Some(terms) = terms {
        A::row_add(simd, row, &terms[..row.len()]);
    }
}

/// The smallest range that holds all of them, but for empty ones.
#[inline(always)]
pub(super) fn union(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    ranges.filter(|range| !range.is_empty()).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// Empty where they have nothing in common; it then begins in the second one.
#[inline(always)]
pub(super) fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.clamp(b.start, b.end);
    start..a.end.clamp(start, b.end)
}
