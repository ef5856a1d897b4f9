use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::{AttentionOptions, Packing};
use crate::checks::ensure_shape;

/// Which keys each query sees.
pub(super) struct Visibility {
    batch: usize,
    queries: usize,
    keys: usize,
    causal: bool,
    window: usize,
    packing: Option<Packing>,
    /// `(batch, keys)` of u8, contiguous, zero where a key is hidden from all queries.
    key_padding: Option<Tensor>,
}

impl Visibility {
    pub(super) fn new(op: &str, options: &AttentionOptions, batch: usize, queries: usize, keys: usize) -> Result<Self> {
        let causal = options.causal || options.window.is_some();
        if causal && queries > keys {
            bail!("{op}: causal attention of {queries} queries needs at least as many keys, got {keys}");
        }
        if options.window == Some(0) {
            bail!("{op}: the window is 0 keys, expected at least 1");
        }
        if let Some(packing) = &options.packing {
            if [batch, queries, keys] != [1, packing.len(), packing.len()] {
                let tokens = packing.len();
                bail!("{op}: {tokens} packed tokens are one row, got {batch} of {queries} queries and {keys} keys");
            }
            if options.window.is_some() || options.key_padding.is_some() {
                bail!("{op}: packed sequences have neither a window nor padding");
            }
        }
        let key_padding = match &options.key_padding {
            None => None,
            Some(mask) => {
                if !mask.dtype().is_int() {
                    bail!("{op}: the key padding mask is {}, expected an integer dtype", mask.dtype().as_str());
                }
                ensure_shape(op, "key padding mask", mask, &[batch, keys])?;
                Some(mask.ne(&mask.zeros_like()?)?)
            }
        };
        let window = options.window.unwrap_or(usize::MAX);
        Ok(Self { batch, queries, keys, causal, window, packing: options.packing.clone(), key_padding })
    }

    /// `(batch, keys)` of u8, contiguous, zero where a key is hidden from all queries.
    pub(super) fn key_padding(&self) -> Option<&Tensor> {
        self.key_padding.as_ref()
    }

    /// The key at the position of the first query.
    fn past(&self) -> usize {
        self.keys - self.queries
    }

    /// The keys that a query sees, but for padding and a hole.
    #[inline(always)]
    pub(super) fn keys_of(&self, query: usize) -> Range<usize> {
        if let Some(packing) = &self.packing {
            return packing.keys_of(query);
        }
        if !self.causal {
            return 0..self.keys;
        }
        let end = self.past() + query + 1;
        end.saturating_sub(self.window)..end
    }

    /// Keys among them that it does not see.
    #[inline(always)]
    pub(super) fn hole_of(&self, query: usize) -> Range<usize> {
        self.packing.as_ref().map_or(0..0, |packing| packing.hole_of(query))
    }

    /// The queries that see any of some keys, but for padding and holes.
    pub(super) fn queries_of(&self, keys: Range<usize>) -> Range<usize> {
        if keys.is_empty() {
            return 0..0;
        }
        if let Some(packing) = &self.packing {
            return packing.queries_of(keys);
        }
        if !self.causal {
            return 0..self.queries;
        }
        let start = keys.start.saturating_sub(self.past());
        // The last key is the oldest one of the window's last query.
        let end = (keys.end - 1).saturating_add(self.window).saturating_sub(self.past()).min(self.queries);
        start..end.max(start)
    }

    /// The same as a tensor `(batch, 1, queries, keys)` of u8, zero where a key is hidden; `None` when every query sees
    /// every key.
    pub(super) fn mask(&self, device: &Device) -> Result<Option<Tensor>> {
        let shape = (self.batch, 1, self.queries, self.keys);
        let mut masks = Vec::new();
        if self.packing.is_some() {
            let sees = |query: usize| {
                let (keys, hole) = (self.keys_of(query), self.hole_of(query));
                (0..self.keys).map(move |key| u8::from(keys.contains(&key) && !hole.contains(&key)))
            };
            let mask = (0..self.queries).flat_map(sees).collect();
            masks.push(Tensor::from_vec(mask, (self.queries, self.keys), device)?);
        } else if self.causal {
            let positions = |from: usize, len: usize| Tensor::arange(from as i64, (from + len) as i64, device);
            let key = positions(0, self.keys)?;
            let query = positions(self.past(), self.queries)?.unsqueeze(1)?;
            masks.push(key.broadcast_le(&query)?);
            if self.window < self.keys {
                let oldest = (query + 1.0)?.broadcast_sub(&Tensor::new(self.window as i64, device)?)?;
                masks.push(key.broadcast_ge(&oldest)?);
            }
        }
        if let Some(padding) = &self.key_padding {
            masks.push(padding.reshape((self.batch, 1, 1, self.keys))?);
        }
        let both = |a: Tensor, b: Tensor| a.broadcast_mul(&b);
        let mask = masks.into_iter().map(Ok).reduce(|a, b| both(a?, b?)).transpose()?;
        mask.map(|mask| mask.broadcast_as(shape)?.contiguous()).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_keys_are_those_that_see_one_of_them() -> Result<()> {
        let mut options = vec![AttentionOptions::full(), AttentionOptions::causal()];
        options.extend((1..8).map(|window| AttentionOptions::causal().with_window(window)));
        for options in options {
            for (queries, keys) in [(5, 5), (2, 6), (1, 4), (6, 6)] {
                let visibility = Visibility::new("test", &options, 1, queries, keys)?;
                for start in 0..keys {
                    for end in start + 1..=keys {
                        let sees = |&query: &usize| {
                            let seen = visibility.keys_of(query);
                            seen.start.max(start) < seen.end.min(end)
                        };
                        let expected: Vec<usize> = (0..queries).filter(sees).collect();
                        let actual: Vec<usize> = visibility.queries_of(start..end).collect();
                        assert_eq!(actual, expected, "{options:?}, keys {start}..{end}");
                    }
                }
            }
        }
        Ok(())
    }
}
