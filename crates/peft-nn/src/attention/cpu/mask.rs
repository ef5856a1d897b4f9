//! Which keys a query sees, padding included.

use std::ops::Range;

use candle_core::Result;

use super::arithmetic::Arithmetic;
use super::scores::intersection;
use crate::attention::visibility::Visibility;
use crate::cpu::read;

pub(super) struct Mask<'a, A> {
    visibility: &'a Visibility,
    padding: Vec<Padding<A>>,
}

/// Of one batch entry.
struct Padding<A> {
    /// From the first key that is not padding to the last.
    tokens: Range<usize>,
    /// To be added to the scores, zero or `-inf`; empty where no key among `tokens` is hidden.
    terms: Vec<A>,
}

impl<'a, A: Arithmetic> Mask<'a, A> {
    /// The terms of a batch entry are as many as `keys` rounded up to a multiple of `block`.
    pub(super) fn new(visibility: &'a Visibility, keys: usize, block: usize) -> Result<Self> {
        let Some(mask) = visibility.key_padding() else {
            return Ok(Self { visibility, padding: Vec::new() });
        };
        let elements = read(mask)?;
        let of_entry = |keep: &[u8]| {
            let is_token = |keep: &u8| *keep != 0;
            let end = keep.iter().rposition(is_token).map_or(0, |last| last + 1);
            let start = keep.iter().position(is_token).unwrap_or(end);
            let mut terms = Vec::new();
            if !keep[start..end].iter().all(is_token) {
                let term = |keep: &u8| if is_token(keep) { A::zero() } else { A::neg_infinity() };
                terms.extend(keep.iter().map(term));
                terms.resize(keys.next_multiple_of(block), A::neg_infinity());
            }
            Padding { tokens: start..end, terms }
        };
        let padding =
            if keys == 0 { Vec::new() } else { elements.as_slice::<u8>()?.chunks(keys).map(of_entry).collect() };
        Ok(Self { visibility, padding })
    }

    /// The keys that a query sees lie in this range; those that [`Mask::terms`] hides are not seen.
    #[inline(always)]
    pub(super) fn keys_of(&self, batch: usize, query: usize) -> Range<usize> {
        let keys = self.visibility.keys_of(query);
        match self.padding.get(batch) {
            Some(padding) => intersection(&keys, &padding.tokens),
            None => keys,
        }
    }

    /// Those of that range that it does not see, whatever the terms say.
    #[inline(always)]
    pub(super) fn hole_of(&self, query: usize) -> Range<usize> {
        self.visibility.hole_of(query)
    }

    /// The queries that see some of these keys.
    pub(super) fn queries_of(&self, batch: usize, keys: Range<usize>) -> Range<usize> {
        match self.padding.get(batch) {
            Some(padding) => self.visibility.queries_of(intersection(&keys, &padding.tokens)),
            None => self.visibility.queries_of(keys),
        }
    }

    /// What hides keys among those that queries see, for the keys from `start` on.
    #[inline(always)]
    pub(super) fn terms(&self, batch: usize, start: usize) -> Option<&[A]> {
        self.padding.get(batch).filter(|padding| !padding.terms.is_empty()).map(|padding| &padding.terms[start..])
    }

    /// Whether no query sees the key.
    #[inline(always)]
    pub(super) fn hides(&self, batch: usize, key: usize) -> bool {
        self.padding.get(batch).is_some_and(|padding| {
            !padding.tokens.contains(&key) || padding.terms.get(key).is_some_and(|term| *term != A::zero())
        })
    }
}
