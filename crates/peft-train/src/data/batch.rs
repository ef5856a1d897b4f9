//! Examples side by side in tensors.

use super::{Encoded, IGNORE_INDEX};
use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::ops::Deref;

/// Examples of a step, padded on the right to the longest of them.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `(batch, length)`, u32.
    pub input_ids: Tensor,
    /// Labels aligned to the ids, `(batch, length)`, i64; [`IGNORE_INDEX`] on padding and where no loss is wanted.
    pub labels: Tensor,
    /// 1 on tokens and 0 on padding, `(batch, length)`, u8.
    pub attention_mask: Tensor,
    /// Tokens without padding.
    pub token_count: usize,
    /// Tokens with a loss; see [`Encoded::target_count`].
    pub target_count: usize,
}

impl Batch {
    /// Puts the examples in rows, in the order given.
    ///
    /// # Errors
    /// When there are no examples, or on a failure of the device.
    pub fn collate<E: Deref<Target = Encoded>>(
        examples: impl IntoIterator<Item = E>,
        pad_id: u32,
        device: &Device,
    ) -> Result<Self> {
        let examples: Vec<E> = examples.into_iter().collect();
        let length = examples.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        if length == 0 {
            return Err(Error::option("batch", "a batch needs at least one example with a token"));
        }
        let shape = (examples.len(), length);
        let (mut input_ids, mut labels, mut attention_mask) = (Vec::new(), Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            let end = (row + 1) * length;
            input_ids.extend_from_slice(&example.ids);
            input_ids.resize(end, pad_id);
            labels.extend_from_slice(&example.labels);
            labels.resize(end, IGNORE_INDEX);
            attention_mask.resize(row * length + example.ids.len(), 1u8);
            attention_mask.resize(end, 0);
        }
        Ok(Self {
            input_ids: Tensor::from_vec(input_ids, shape, device)?,
            labels: Tensor::from_vec(labels, shape, device)?,
            attention_mask: Tensor::from_vec(attention_mask, shape, device)?,
            token_count: examples.iter().map(|example| example.ids.len()).sum(),
            target_count: examples.iter().map(|example| example.target_count()).sum(),
        })
    }
}
