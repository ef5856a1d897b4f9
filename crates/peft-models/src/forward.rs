//! What a caller may ask of a forward pass.

use crate::{Checkpointing, KvCache};
use candle_core::Tensor;
use peft_nn::{Extension, Packing};

/// The positions of a sequence that logits are computed for.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum LogitPositions {
    /// Every position.
    #[default]
    All,
    /// The last position of each row that is not padding.
    Last,
    /// These columns of the input, integers of shape `(n)` for all rows or `(batch, n)` for each.
    At(Tensor),
}

/// What a pass goes on with.
#[derive(Debug)]
pub(crate) enum CacheUse<'a> {
    /// The rows of a batch.
    Batch(&'a mut KvCache),
    /// These sequences.
    Sequences(&'a mut KvCache, Vec<Extension>),
}

/// How a forward pass runs; [`ForwardOptions::default`] gives logits for every position of unpadded rows without a cache.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_models::ForwardOptions;
///
/// // Two rows, the first of them padded on the left.
/// let is_token = Tensor::new(&[[0u32, 1, 1], [1, 1, 1]], &Device::Cpu)?;
/// let options = ForwardOptions::last().with_padding(is_token);
/// # drop(options);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct ForwardOptions<'a> {
    pub(crate) logits: LogitPositions,
    pub(crate) is_token: Option<Tensor>,
    pub(crate) cache: Option<CacheUse<'a>>,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) packing: Option<Packing>,
}

impl ForwardOptions<'_> {
    /// Runs a pass with these options: without a graph if it is one with a cache.
    pub(crate) fn run<R>(self, pass: impl FnOnce(Self) -> R) -> R {
        if self.cache.is_some() { peft_nn::without_graph(|| pass(self)) } else { pass(self) }
    }
}

impl<'a> ForwardOptions<'a> {
    /// Logits for every position.
    pub fn all() -> Self {
        Self::default()
    }

    /// Logits for the last position of each row that is not padding.
    pub fn last() -> Self {
        Self { logits: LogitPositions::Last, ..Self::default() }
    }

    /// Logits for these columns of the input, integers of shape `(n)` for all rows or `(batch, n)` for each.
    pub fn at(columns: Tensor) -> Self {
        Self { logits: LogitPositions::At(columns), ..Self::default() }
    }

    /// Marks padding: `is_token`, `(batch, seq)` of any integer dtype, is zero where the input is padding.
    ///
    /// Padding may stand on either side or between tokens. No token sees it, and it does not count as a position. Batches that are
    /// padded on the right need no mark for their tokens to be right; without one, [`LogitPositions::Last`] is the last column.
    #[must_use]
    pub fn with_padding(mut self, is_token: Tensor) -> Self {
        self.is_token = Some(is_token);
        self
    }

    /// Continues the sequences in `cache`, and adds the input to them.
    ///
    /// The pass is inference then: its result carries no gradient. Padding marked in earlier passes is remembered.
    #[must_use]
    pub fn with_cache(mut self, cache: &'a mut KvCache) -> Self {
        self.cache = Some(CacheUse::Batch(cache));
        self
    }

    /// Continues any sequences of `cache`, each by as many tokens as its extension says. The input is `(1, tokens)`: the new tokens of
    /// the first extension, then those of the second, and so on, without padding. The logits are those of all these tokens, `(1,
    /// tokens, vocabulary)`; with [`LogitPositions::Last`] those of the last token of each extension, `(1, extensions,
    /// vocabulary)`.
    ///
    /// What a sequence gets does not depend on the others of the pass, to the last bit. The pass is inference, as with
    /// [`ForwardOptions::with_cache`].
    #[must_use]
    pub fn with_sequences(mut self, cache: &'a mut KvCache, extensions: &[Extension]) -> Self {
        self.cache = Some(CacheUse::Sequences(cache, extensions.to_vec()));
        self
    }

    /// The input is one row, `(1, seq)`, of sequences that do not see each other; each begins at position 0. There is neither padding nor
    /// a cache then.
    #[must_use]
    pub fn with_packing(mut self, packing: Packing) -> Self {
        self.packing = Some(packing);
        self
    }

    /// Keeps only some activations for the backward, and computes the others again. A pass with a cache has none to keep.
    #[must_use]
    pub fn with_checkpointing(mut self, checkpointing: Checkpointing) -> Self {
        self.checkpointing = checkpointing;
        self
    }
}
