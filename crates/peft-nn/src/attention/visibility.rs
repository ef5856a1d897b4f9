use candle_core::{Result, Tensor, bail};

use super::{AttentionOptions, NAME};
use crate::checks::ensure_shape;

/// Which keys each row of a score matrix `(batch, kv_heads, rows, keys)` sees. The rows of a batch entry and key head
/// are `queries` long runs, one for each head of the group.
pub(crate) struct Visibility {
    batch: usize,
    queries: usize,
    keys: usize,
    causal: bool,
    /// `(batch, keys)` of u8, contiguous.
    key_padding: Option<Tensor>,
}

/// The keys before `end` that `keep` does not hide with a zero.
pub(crate) struct VisibleKeys<'a> {
    pub(crate) end: usize,
    pub(crate) keep: Option<&'a [u8]>,
}

impl Visibility {
    /// `None` when every query sees every key.
    pub(crate) fn new(options: &AttentionOptions, batch: usize, queries: usize, keys: usize) -> Result<Option<Self>> {
        if options.causal && queries > keys {
            bail!("{NAME}: causal attention of {queries} queries needs at least as many keys, got {keys}");
        }
        let key_padding = match &options.key_padding {
            None => None,
            Some(mask) => {
                if !mask.dtype().is_int() {
                    bail!("{NAME}: the key padding mask is {}, expected an integer dtype", mask.dtype().as_str());
                }
                ensure_shape(NAME, "key padding mask", mask, &[batch, keys])?;
                Some(mask.ne(&mask.zeros_like()?)?)
            }
        };
        if !options.causal && key_padding.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { batch, queries, keys, causal: options.causal, key_padding }))
    }

    /// `(batch, keys)` of u8, contiguous, zero where a key is hidden from all queries.
    pub(crate) fn key_padding(&self) -> Option<&Tensor> {
        self.key_padding.as_ref()
    }

    /// The keys that one of `rows` rows sees, given the elements of the padding mask.
    pub(crate) fn of_row<'a>(&self, row: usize, rows: usize, key_padding: Option<&'a [u8]>) -> VisibleKeys<'a> {
        let end = if self.causal { self.keys - self.queries + row % self.queries + 1 } else { self.keys };
        let batch = row * self.batch / rows;
        VisibleKeys { end, keep: key_padding.map(|keep| &keep[batch * self.keys..][..end]) }
    }

    /// The same as a tensor for `scores`: of u8 and their shape, zero where a key is hidden.
    pub(crate) fn mask(&self, scores: &Tensor) -> Result<Tensor> {
        let (batch, kv_heads, rows, keys) = scores.dims4()?;
        let split = (batch, kv_heads, rows / self.queries.max(1), self.queries, keys);
        let causal = if self.causal {
            let position =
                |len: usize, first: usize| Tensor::arange(first as i64, (first + len) as i64, scores.device());
            let key = position(self.keys, 0)?;
            let query = position(self.queries, self.keys - self.queries)?.unsqueeze(1)?;
            Some(key.broadcast_le(&query)?.broadcast_as(split)?)
        } else {
            None
        };
        let padding = match &self.key_padding {
            Some(mask) => Some(mask.reshape((batch, 1, 1, 1, keys))?.broadcast_as(split)?),
            None => None,
        };
        let mask = match (causal, padding) {
            (Some(causal), Some(padding)) => (causal * padding)?,
            (Some(mask), None) | (None, Some(mask)) => mask,
            (None, None) => Tensor::ones(split, candle_core::DType::U8, scores.device())?,
        };
        mask.reshape(scores.shape())
    }
}
