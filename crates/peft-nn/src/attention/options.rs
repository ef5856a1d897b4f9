use candle_core::Tensor;

use super::Packing;

/// Which keys the queries of [`attention`](crate::attention) and
/// [`multi_head_attention`](crate::multi_head_attention) see, and how scores are scaled.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use peft_nn::AttentionOptions;
///
/// let is_token = Tensor::new(&[[1u8, 1, 0]], &Device::Cpu)?;
/// let options = AttentionOptions::causal().with_key_padding(is_token);
/// # assert!(options.causal && options.key_padding.is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AttentionOptions {
    /// Multiplies the scores before the softmax; `1 / sqrt(head_dim)` unless set.
    pub scale: Option<f64>,
    /// The queries are the last ones of the keys' sequence, and query `i` of `queries` sees the keys up to and
    /// including `keys - queries + i`. With a key-value cache `keys` exceeds `queries`.
    pub causal: bool,
    /// Of the keys that a causal query sees, only so many: the last ones, up to its own. Set, it makes attention
    /// causal.
    pub window: Option<usize>,
    /// `(batch, keys)` of any integer dtype, zero where a key is padding that no query sees.
    pub key_padding: Option<Tensor>,
    /// Sequences that share the row of a batch of one. Set, it makes attention causal; there is neither window nor padding then, and there
    /// are as many queries as keys.
    pub packing: Option<Packing>,
}

impl AttentionOptions {
    /// Every query sees every key.
    pub fn full() -> Self {
        Self::default()
    }

    /// No query sees a later key.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Every query sees the last `window` keys up to its own, as in models with a `sliding_window` (Mistral) in
    /// transformers.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.causal = true;
        self.window = Some(window);
        self
    }

    /// Every query sees the keys of its own sequence up to its own.
    #[must_use]
    pub fn with_packing(mut self, packing: Packing) -> Self {
        self.causal = true;
        self.packing = Some(packing);
        self
    }

    /// Multiplies the scores by `scale` in place of `1 / sqrt(head_dim)`.
    #[must_use]
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Hides the keys where `is_token`, `(batch, keys)` of any integer dtype, is zero.
    #[must_use]
    pub fn with_key_padding(mut self, is_token: Tensor) -> Self {
        self.key_padding = Some(is_token);
        self
    }
}
