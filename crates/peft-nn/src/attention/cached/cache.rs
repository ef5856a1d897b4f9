use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Result, bail};

use super::memory::{Memory, Shape};
use super::{CachedAttention, NAME};

/// A sequence of a [`KeyValueCache`]; no two sequences of a cache ever have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// New tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension {
    /// Which sequence goes on.
    pub sequence: SequenceId,
    /// With how many tokens, at least one.
    pub tokens: usize,
}

/// The keys and values of sequences, each of a length of its own, in all layers of a model.
///
/// They lie in pages of [`KeyValueCache::PAGE`] positions, after Kwon et al. 2023 (PagedAttention, arXiv:2309.06180): memory is taken as
/// sequences grow and used again when they are gone, and a copy of a sequence shares all pages but the last.
///
/// A forward pass [begins](KeyValueCache::begin) with the numbers of new tokens, calls
/// [`cached_attention`](crate::cached_attention) in each layer, and is [ended](KeyValueCache::end): its tokens count from then on.
/// One that fails leaves all sequences as they were.
#[derive(Debug)]
pub struct KeyValueCache {
    layers: usize,
    sequences: BTreeMap<SequenceId, Sequence>,
    next: u64,
    /// How many sequences have each page.
    pub(super) references: Vec<usize>,
    /// Pages that none has.
    pub(super) free: Vec<usize>,
    /// Made when the first keys tell their sizes.
    memory: Option<(Shape, Memory)>,
}

#[derive(Debug, Clone, Default)]
struct Sequence {
    pages: Vec<usize>,
    len: usize,
}

/// A forward pass with a [`KeyValueCache`].
#[derive(Debug)]
pub struct CachedPass {
    parts: Vec<Part>,
    tokens: usize,
}

/// The new tokens of one sequence.
#[derive(Debug)]
pub(in crate::attention) struct Part {
    sequence: SequenceId,
    /// Where they stand among all of the pass.
    pub(in crate::attention) tokens: Range<usize>,
    /// How many came before them.
    pub(in crate::attention) past: usize,
    pub(in crate::attention) pages: Vec<usize>,
}

impl CachedPass {
    /// The number of new tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(in crate::attention) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl KeyValueCache {
    /// Positions of a page.
    pub const PAGE: usize = 64;

    /// A cache without sequences for a model of so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers, sequences: BTreeMap::new(), next: 0, references: vec![], free: vec![], memory: None }
    }

    /// Adds an empty sequence.
    pub fn add(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// Adds a sequence with the tokens of another one. The two share memory.
    ///
    /// # Errors
    /// When the other one is not in the cache.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        let mut sequence = self.sequence(id)?.clone();
        // A pass that failed may have left pages behind the end, which are to be written to.
        sequence.pages.truncate(sequence.len.div_ceil(Self::PAGE));
        for &page in &sequence.pages {
            self.references[page] += 1;
        }
        Ok(self.insert(sequence))
    }

    /// Removes a sequence; its memory is kept for others. Does nothing if it is not there.
    pub fn remove(&mut self, id: SequenceId) {
        for page in self.sequences.remove(&id).unwrap_or_default().pages {
            self.release(page);
        }
    }

    /// Removes all sequences; the memory is kept for others.
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.references.fill(0);
        self.free = (0..self.references.len()).rev().collect();
    }

    /// The number of tokens of a sequence.
    ///
    /// # Errors
    /// When it is not in the cache.
    pub fn len_of(&self, id: SequenceId) -> Result<usize> {
        Ok(self.sequence(id)?.len)
    }

    /// Begins a pass over these new tokens: all of the first sequence, then all of the second, and so on.
    ///
    /// # Errors
    /// When a sequence is not in the cache, is named twice or gets no tokens.
    pub fn begin(&mut self, extensions: &[Extension]) -> Result<CachedPass> {
        let mut parts: Vec<Part> = Vec::with_capacity(extensions.len());
        let mut tokens = 0;
        for &Extension { sequence, tokens: count } in extensions {
            let past = self.sequence(sequence)?.len;
            if count == 0 {
                bail!("{NAME}: {sequence:?} gets no new tokens");
            }
            parts.push(Part { sequence, tokens: tokens..tokens + count, past, pages: vec![] });
            tokens += count;
        }
        let mut named: Vec<SequenceId> = parts.iter().map(|part| part.sequence).collect();
        named.sort_unstable();
        if let Some(pair) = named.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{NAME}: {:?} is named twice in one pass", pair[0]);
        }
        for part in &mut parts {
            part.pages = self.reserve(part.sequence, part.past + part.tokens.len())?;
        }
        Ok(CachedPass { parts, tokens })
    }

    /// Ends a pass whose layers have all been computed.
    pub fn end(&mut self, pass: CachedPass) {
        for part in pass.parts {
            if let Some(sequence) = self.sequences.get_mut(&part.sequence) {
                sequence.len = part.past + part.tokens.len();
            }
        }
    }

    /// The memory for an operator's keys and values.
    pub(super) fn memory_for(&mut self, op: &CachedAttention, layer: usize) -> Result<&mut Memory> {
        if layer >= self.layers {
            bail!("{NAME}: the key-value cache was made for a model of {} layers, this model has more", self.layers);
        }
        let shape = Shape::of(op, self.layers);
        if self.memory.as_ref().is_none_or(|(held, _)| *held != shape) {
            if let Some((held, _)) = self.memory.as_ref().filter(|_| self.sequences.values().any(|s| s.len > 0)) {
                bail!("{NAME}: the key-value cache holds {held}, not {shape}; reset it before other sequences");
            }
            let memory = Memory::new(&shape)?;
            self.memory = Some((shape, memory));
        }
        match &mut self.memory {
            Some((shape, memory)) => {
                memory.grow(self.references.len(), shape)?;
                Ok(memory)
            }
            None => bail!("{NAME}: the key-value cache has no memory"),
        }
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence> {
        match self.sequences.get(&id) {
            Some(sequence) => Ok(sequence),
            None => bail!("{NAME}: {id:?} is not in the key-value cache"),
        }
    }

    /// Makes room for `len` tokens of a sequence, in pages of its own from where it ends. Returns all of its pages.
    fn reserve(&mut self, id: SequenceId, len: usize) -> Result<Vec<usize>> {
        let Sequence { mut pages, len: past } = self.sequence(id)?.clone();
        if let Some(last) = pages.get_mut(past / Self::PAGE)
            && self.references[*last] > 1
        {
            let own = self.take();
            if let Some((shape, memory)) = &mut self.memory {
                memory.grow(self.references.len(), shape)?;
                memory.copy(*last, own)?;
            }
            self.references[*last] -= 1;
            *last = own;
        }
        while pages.len() < len.div_ceil(Self::PAGE) {
            pages.push(self.take());
        }
        self.sequences.insert(id, Sequence { pages: pages.clone(), len: past });
        Ok(pages)
    }

    /// A page for one sequence.
    fn take(&mut self) -> usize {
        let page = self.free.pop().unwrap_or_else(|| {
            self.references.push(0);
            self.references.len() - 1
        });
        self.references[page] = 1;
        page
    }

    fn release(&mut self, page: usize) {
        self.references[page] -= 1;
        if self.references[page] == 0 {
            self.free.push(page);
        }
    }
}
