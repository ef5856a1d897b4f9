//! One forward pass over a batch: where its tokens stand, what they see, and which of them are asked for.

use crate::cache::Continued;
use crate::forward::CacheUse;
use crate::{Checkpointing, ForwardOptions, KvCache, LogitPositions};
use candle_core::{DType, Device, Result, Tensor, bail};
use peft_nn::{AttentionOptions, CachedPass, Heads, Packing, Rotary, cached_attention, multi_head_attention};
use std::ops::Range;

/// The positions of the columns of [`Sequence::ids`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Positions {
    /// The same in every row.
    Shared(Range<usize>),
    /// `batch * seq` of them, row by row.
    PerRow(Vec<usize>),
}

/// The state of one forward pass, shared by all layers.
pub(crate) struct Sequence<'a> {
    /// What the model computes with.
    ids: Tensor,
    /// Of the input.
    batch: usize,
    seq: usize,
    positions: Positions,
    attention: AttentionOptions,
    logits: LogitPositions,
    /// Which columns of the input are tokens, where any padding is marked.
    is_token: Option<Vec<Vec<bool>>>,
    cached: Option<Cached<'a>>,
    checkpointing: Checkpointing,
}

/// What a pass with a cache goes on with. Its ids are the tokens alone, as one row.
struct Cached<'a> {
    cache: &'a mut KvCache,
    pass: CachedPass,
    /// Whether the cache's sequences are the rows of the input.
    is_batch: bool,
    /// The last token of each sequence.
    last: Vec<usize>,
}

impl<'a> Sequence<'a> {
    /// Checks input and options against each other and the model's number of positions.
    pub(crate) fn new(input_ids: &Tensor, options: ForwardOptions<'a>, max_positions: usize) -> Result<Self> {
        let &[batch, seq] = input_ids.dims() else {
            bail!("the token ids are (batch, seq), got {:?}", input_ids.dims())
        };
        if batch == 0 || seq == 0 {
            bail!("the token ids are empty: {:?}", input_ids.dims());
        }
        let ForwardOptions { logits, is_token, cache, checkpointing, packing } = options;
        if let Some(packing) = packing {
            if is_token.is_some() || cache.is_some() {
                bail!("packed sequences have neither padding nor a key-value cache");
            }
            return Self::packed(input_ids, packing, logits, checkpointing, max_positions);
        }
        let past = if let Some(CacheUse::Batch(cache)) = &cache { cache.len() } else { 0 };
        if seq > max_positions.saturating_sub(past) && !matches!(cache, Some(CacheUse::Sequences(..))) {
            let cached = if past > 0 { format!("{past} cached and {seq} new ") } else { format!("{seq} ") };
            bail!("{cached}tokens are more than the {max_positions} positions of the model (max_position_embeddings)");
        }
        let is_token = is_token.map(|mask| read_mask(&mask, batch, seq)).transpose()?;
        let mut sequence = Self {
            ids: input_ids.clone(),
            batch,
            seq,
            positions: positions(is_token.as_deref(), seq),
            attention: AttentionOptions::causal(),
            logits,
            is_token,
            cached: None,
            checkpointing,
        };
        match cache {
            Some(cache) => sequence.go_on_with(cache, max_positions)?,
            None => {
                let padded = sequence.is_token.as_deref().filter(|rows| rows.iter().any(|row| pads_before_token(row)));
                if let Some(rows) = padded {
                    let mask = mask_tensor(rows, input_ids.device())?;
                    sequence.attention = AttentionOptions::causal().with_key_padding(mask);
                }
            }
        }
        Ok(sequence)
    }

    /// A pass over sequences in one row.
    fn packed(
        input_ids: &Tensor,
        packing: Packing,
        logits: LogitPositions,
        checkpointing: Checkpointing,
        max_positions: usize,
    ) -> Result<Self> {
        let (batch, seq) = (1, packing.len());
        if input_ids.dims() != [batch, seq] {
            bail!("{seq} packed tokens are an input of shape {:?}, got {:?}", [batch, seq], input_ids.dims());
        }
        let positions: Vec<usize> = packing.positions().collect();
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        if longest > max_positions {
            bail!(
                "{longest} tokens are more than the {max_positions} positions of the model (max_position_embeddings)"
            );
        }
        Ok(Self {
            ids: input_ids.clone(),
            batch,
            seq,
            positions: Positions::PerRow(positions),
            attention: AttentionOptions::causal().with_packing(packing),
            logits,
            is_token: None,
            cached: None,
            checkpointing,
        })
    }

    fn go_on_with(&mut self, cache: CacheUse<'a>, max_positions: usize) -> Result<()> {
        let (batch, seq) = (self.batch, self.seq);
        let is_batch = matches!(cache, CacheUse::Batch(_));
        let (cache, continued) = match cache {
            CacheUse::Batch(cache) => {
                let tokens = |row: usize| match &self.is_token {
                    Some(rows) => rows[row].iter().filter(|is_token| **is_token).count(),
                    None => seq,
                };
                let rows = cache.rows(batch)?.to_vec().into_iter().enumerate();
                let extensions = rows
                    .map(|(row, sequence)| peft_nn::Extension { sequence, tokens: tokens(row) })
                    .collect::<Vec<_>>();
                let continued = Continued::of(cache, extensions)?;
                (cache, continued)
            }
            CacheUse::Sequences(cache, extensions) => {
                let tokens: usize = extensions.iter().map(|extension| extension.tokens).sum();
                if (batch, seq) != (1, tokens) || self.is_token.is_some() {
                    bail!(
                        "{tokens} tokens of sequences are (1, {tokens}) and without padding, got {:?}",
                        self.ids.dims()
                    );
                }
                let continued = Continued::of(cache, extensions)?;
                (cache, continued)
            }
        };
        if let Some(last) = continued.positions.iter().find(|position| **position >= max_positions) {
            bail!("position {last} of a sequence is behind the {max_positions} of the model (max_position_embeddings)");
        }
        if let Some(rows) = &self.is_token {
            let is_token = rows.iter().flatten().enumerate().filter(|(_, is_token)| **is_token);
            let tokens = is_token.map(|(at, _)| at as u32).collect::<Vec<_>>();
            if tokens.is_empty() {
                bail!("the input has no tokens, all of it is padding");
            }
            self.ids = self.ids.flatten_all()?.index_select(&Tensor::new(tokens, self.ids.device())?, 0)?;
        }
        self.ids = self.ids.reshape((1, continued.positions.len()))?;
        let mut ends = 0;
        let last = continued.extensions.iter().map(|extension| {
            ends += extension.tokens;
            ends - 1
        });
        let last = last.collect();
        let pass = cache.sequences().begin(&continued.extensions)?;
        self.positions = Positions::PerRow(continued.positions);
        self.cached = Some(Cached { cache, pass, is_batch, last });
        Ok(())
    }

    /// The ids `(batch, seq)` that the model computes with: those of the input, or with a cache its tokens alone, as one row.
    pub(crate) fn ids(&self) -> &Tensor {
        &self.ids
    }

    pub(crate) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The positions as ids to look up, `(1, seq)` or `(batch, seq)`.
    pub(crate) fn position_ids(&self) -> Result<Tensor> {
        let (batch, seq) = self.ids.dims2()?;
        let (rows, ids): (_, Vec<usize>) = match &self.positions {
            Positions::Shared(range) => (1, range.clone().collect()),
            Positions::PerRow(positions) => (batch, positions.clone()),
        };
        let ids = ids.into_iter().map(|id| id as i64).collect();
        Tensor::from_vec(ids, (rows, seq), self.ids.device())
    }

    /// The numbers of blocks that are computed again together, from the first on; see [`Checkpointing`].
    pub(crate) fn segments(&self, blocks: usize) -> Vec<usize> {
        if self.cached.is_some() { vec![] } else { self.checkpointing.segments(blocks) }
    }

    /// The same pass for blocks that run apart from it, without a cache.
    pub(crate) fn without_cache(&self) -> Sequence<'static> {
        Sequence {
            ids: self.ids.clone(),
            batch: self.batch,
            seq: self.seq,
            positions: self.positions.clone(),
            attention: self.attention.clone(),
            logits: LogitPositions::All,
            is_token: None,
            cached: None,
            checkpointing: Checkpointing::None,
        }
    }

    /// Attention of one layer over the new tokens and those in the cache, from projections `(batch, seq, heads * head_dim)` to one.
    /// `rotary` has a row for each new token.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        [q, k, v]: [&Tensor; 3],
        heads: Heads,
        rotary: Option<Rotary<'_>>,
        scale: Option<f64>,
    ) -> Result<Tensor> {
        match &mut self.cached {
            Some(Cached { cache, pass, .. }) => {
                cached_attention(q, k, v, heads, rotary, scale, cache.sequences(), pass, layer)
            }
            None => {
                self.attention.scale = scale;
                multi_head_attention(q, k, v, heads, rotary, &self.attention)
            }
        }
    }

    /// The hidden states `(batch, n, hidden)` of the positions that were asked for, from those of all. Ends the pass: what was added
    /// to the cache counts from here on.
    pub(crate) fn finish(mut self, hidden: Tensor) -> Result<Tensor> {
        let Some(Cached { cache, pass, is_batch, last }) = self.cached.take() else { return self.asked_for(hidden) };
        let hidden = hidden.detach();
        let hidden = match (&self.logits, is_batch) {
            (LogitPositions::Last, false) => self.select(&hidden, &[last])?,
            (_, false) => self.asked_for(hidden)?,
            (_, true) => self.asked_for(self.in_places(&hidden)?)?,
        };
        cache.sequences().end(pass);
        if is_batch {
            cache.add_columns(self.seq);
        }
        Ok(hidden)
    }

    fn asked_for(&self, hidden: Tensor) -> Result<Tensor> {
        match &self.logits {
            LogitPositions::All => Ok(hidden),
            LogitPositions::Last => match self.last_tokens() {
                Some(columns) => self.select(&hidden, &columns),
                None => hidden.narrow(1, self.seq - 1, 1),
            },
            LogitPositions::At(columns) => self.select(&hidden, &self.columns(columns)?),
        }
    }

    /// The states of the tokens alone as `(batch, seq, hidden)`, zeros where the input is padding.
    fn in_places(&self, hidden: &Tensor) -> Result<Tensor> {
        let width = hidden.dim(2)?;
        let Some(rows) = &self.is_token else { return hidden.reshape((self.batch, self.seq, width)) };
        let tokens = hidden.dim(1)?;
        let mut next = 0;
        let places = rows.iter().flatten().map(|is_token| {
            next += u32::from(*is_token);
            if *is_token { next - 1 } else { tokens as u32 }
        });
        let places = Tensor::new(places.collect::<Vec<_>>(), hidden.device())?;
        let zeros = Tensor::zeros((1, width), hidden.dtype(), hidden.device())?;
        let states = Tensor::cat(&[&hidden.squeeze(0)?, &zeros], 0)?;
        states.index_select(&places, 0)?.reshape((self.batch, self.seq, width))
    }

    /// The last column of each row that is a token, unless that is the last one everywhere.
    fn last_tokens(&self) -> Option<Vec<Vec<usize>>> {
        let last = |row: &Vec<bool>| row.iter().rposition(|is_token| *is_token).unwrap_or(self.seq - 1);
        let last: Vec<usize> = self.is_token.as_ref()?.iter().map(last).collect();
        let differs = last.iter().any(|column| *column != self.seq - 1);
        differs.then(|| last.into_iter().map(|column| vec![column]).collect())
    }

    fn columns(&self, columns: &Tensor) -> Result<Vec<Vec<usize>>> {
        if !columns.dtype().is_int() {
            bail!("the positions of logits are {}, expected an integer dtype", columns.dtype().as_str());
        }
        let per_row = match columns.dims() {
            [_] => columns.unsqueeze(0)?.broadcast_as((self.batch, columns.dim(0)?))?,
            [batch, _] if *batch == self.batch => columns.clone(),
            dims => bail!("the positions of logits have shape {dims:?}, expected (n) or ({}, n)", self.batch),
        };
        let in_range = |column: i64| match usize::try_from(column) {
            Ok(column) if column < self.seq => Ok(column),
            _ => bail!("logits asked for at position {column} of a sequence of {} tokens", self.seq),
        };
        let rows = per_row.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec2::<i64>()?;
        rows.into_iter().map(|row| row.into_iter().map(in_range).collect()).collect()
    }

    fn select(&self, hidden: &Tensor, columns: &[Vec<usize>]) -> Result<Tensor> {
        let width = hidden.dim(2)?;
        let n = columns.first().map_or(0, Vec::len);
        let flat = columns
            .iter()
            .enumerate()
            .flat_map(|(row, columns)| columns.iter().map(move |c| (row * self.seq + c) as i64));
        let flat = Tensor::from_vec(flat.collect(), self.batch * n, hidden.device())?;
        hidden.reshape((self.batch * self.seq, width))?.index_select(&flat, 0)?.reshape((self.batch, n, width))
    }
}

fn read_mask(mask: &Tensor, batch: usize, seq: usize) -> Result<Vec<Vec<bool>>> {
    if !mask.dtype().is_int() || mask.dims() != [batch, seq] {
        let (dtype, dims) = (mask.dtype().as_str(), mask.dims());
        bail!("the padding mask is {dtype} of shape {dims:?}, expected integers of shape {:?}", [batch, seq]);
    }
    let rows = mask.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec2::<i64>()?;
    Ok(rows.into_iter().map(|row| row.into_iter().map(|is_token| is_token != 0).collect()).collect())
}

fn mask_tensor(rows: &[Vec<bool>], device: &Device) -> Result<Tensor> {
    let (batch, columns) = (rows.len(), rows.first().map_or(0, Vec::len));
    let mask = rows.iter().flatten().map(|is_token| u8::from(*is_token)).collect();
    Tensor::from_vec(mask, (batch, columns), device)
}

/// Whether the causal mask alone would let a token see padding.
fn pads_before_token(row: &[bool]) -> bool {
    let tokens_end = row.iter().rposition(|is_token| *is_token).map_or(0, |last| last + 1);
    row[..tokens_end].iter().any(|is_token| !is_token)
}

/// The position of a token is the number of tokens before it; that of padding does not matter.
fn positions(is_token: Option<&[Vec<bool>]>, seq: usize) -> Positions {
    let shared = Positions::Shared(0..seq);
    let Some(rows) = is_token else { return shared };
    let mut positions = Vec::with_capacity(rows.len() * seq);
    let mut all_shared = true;
    for row in rows {
        let mut tokens = 0;
        for (column, is_token) in row.iter().enumerate() {
            positions.push(tokens);
            if *is_token {
                all_shared &= tokens == column;
                tokens += 1;
            }
        }
    }
    if all_shared { shared } else { Positions::PerRow(positions) }
}
