//! Keys and values of past tokens, so that generation computes each token once.

use candle_core::{Result, bail};
use peft_nn::{Extension, KeyValueCache, SequenceId};

/// The keys and values of the tokens a model has seen, made by [`CausalLanguageModel::new_cache`](crate::CausalLanguageModel::new_cache).
///
/// It is used in one of two ways:
///
/// - [`ForwardOptions::with_cache`](crate::ForwardOptions::with_cache) goes on with all rows of a batch at once; the cache makes a sequence
///   of each row, and [`KvCache::reset`] comes before other batches.
/// - [`ForwardOptions::with_sequences`](crate::ForwardOptions::with_sequences) goes on with any sequences by any numbers of tokens. They are
///   added, copied and removed here.
///
/// Memory is taken as sequences grow, and used again when they are gone. What a sequence gets does not depend on the others, to the last
/// bit. A pass that fails leaves the cache as it was.
#[derive(Debug)]
pub struct KvCache {
    sequences: KeyValueCache,
    /// Those of a batch.
    rows: Vec<SequenceId>,
    /// Columns of the batch, padding included.
    len: usize,
}

impl KvCache {
    /// An empty cache for a model of so many layers.
    pub(crate) fn new(layers: usize) -> Self {
        Self { sequences: KeyValueCache::new(layers), rows: vec![], len: 0 }
    }

    /// Number of columns of the batch seen so far, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no batch has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens and sequences; the memory is kept for the next ones.
    pub fn reset(&mut self) {
        self.sequences.clear();
        self.rows.clear();
        self.len = 0;
    }

    /// Adds an empty sequence.
    pub fn add(&mut self) -> SequenceId {
        self.sequences.add()
    }

    /// Adds a sequence with the tokens of another one. What they have in common is kept once, but for the last few tokens.
    ///
    /// # Errors
    /// When the other one is not in the cache.
    pub fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        self.sequences.fork(sequence)
    }

    /// Removes a sequence.
    pub fn remove(&mut self, sequence: SequenceId) {
        self.sequences.remove(sequence);
    }

    /// The number of tokens of a sequence.
    ///
    /// # Errors
    /// When it is not in the cache.
    pub fn len_of(&self, sequence: SequenceId) -> Result<usize> {
        self.sequences.len_of(sequence)
    }

    /// The sequences of the rows of a batch.
    pub(crate) fn rows(&mut self, batch: usize) -> Result<&[SequenceId]> {
        if self.len == 0 {
            self.rows.drain(..).for_each(|row| self.sequences.remove(row));
            self.rows = (0..batch).map(|_| self.sequences.add()).collect();
        }
        if self.rows.len() != batch {
            bail!(
                "the key-value cache holds {} rows, the input has {batch}; reset it before other batches",
                self.rows.len()
            );
        }
        Ok(&self.rows)
    }

    /// What passes run on.
    pub(crate) fn sequences(&mut self) -> &mut KeyValueCache {
        &mut self.sequences
    }

    /// Counts `seq` new columns of the batch as seen.
    pub(crate) fn add_columns(&mut self, seq: usize) {
        self.len += seq;
    }
}

/// The new tokens of a pass that goes on with sequences of a cache.
pub(crate) struct Continued {
    pub(crate) extensions: Vec<Extension>,
    /// The position of each token.
    pub(crate) positions: Vec<usize>,
}

impl Continued {
    /// The extensions in their order, those without tokens left out.
    pub(crate) fn of(cache: &KvCache, extensions: impl IntoIterator<Item = Extension>) -> Result<Self> {
        let extensions: Vec<Extension> = extensions.into_iter().filter(|extension| extension.tokens > 0).collect();
        let mut positions = vec![];
        for extension in &extensions {
            let past = cache.len_of(extension.sequence)?;
            positions.extend(past..past + extension.tokens);
        }
        Ok(Self { extensions, positions })
    }
}
