//! One forward pass over a batch: where its tokens stand, what they see, and which of them are asked for.

use crate::{Checkpointing, ForwardOptions, KvCache, LogitPositions};
use candle_core::{DType, Device, Result, Tensor, bail};
use peft_nn::{AttentionOptions, Heads, Packing, Rotary, attention, multi_head_attention};
use std::ops::Range;

/// The positions of the input's columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Positions {
    /// The same in every row.
    Shared(Range<usize>),
    /// `batch * seq` of them, row by row.
    PerRow(Vec<usize>),
}

/// The state of one forward pass, shared by all layers.
pub(crate) struct Sequence<'a> {
    batch: usize,
    seq: usize,
    positions: Positions,
    attention: AttentionOptions,
    logits: LogitPositions,
    cache: Option<&'a mut KvCache>,
    /// Of all columns, cached ones included, where any padding is marked.
    is_token: Option<Vec<Vec<bool>>>,
    checkpointing: Checkpointing,
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
            return Self::packed([batch, seq], packing, logits, checkpointing, max_positions);
        }
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        if seq > max_positions.saturating_sub(past) {
            let cached = if past > 0 { format!("{past} cached and {seq} new ") } else { format!("{seq} ") };
            bail!("{cached}tokens are more than the {max_positions} positions of the model (max_position_embeddings)");
        }
        let marked = is_token.map(|mask| read_mask(&mask, batch, seq)).transpose()?;
        let known = cache.as_ref().and_then(|cache| cache.is_token());
        if let Some(known) = known.filter(|known| known.len() != batch) {
            bail!("the key-value cache holds {} rows, the input has {batch}", known.len());
        }
        let is_token = match (known, marked) {
            (None, None) => None,
            (known, marked) => Some(
                (0..batch)
                    .map(|row| {
                        let mut columns = known.map_or_else(|| vec![true; past], |known| known[row].clone());
                        columns.extend(marked.as_ref().map_or_else(|| vec![true; seq], |marked| marked[row].clone()));
                        columns
                    })
                    .collect::<Vec<_>>(),
            ),
        };
        let mut attention = AttentionOptions::causal();
        if let Some(rows) = is_token.as_deref().filter(|rows| rows.iter().any(|row| pads_before_token(row))) {
            attention = attention.with_key_padding(mask_tensor(rows, input_ids.device())?);
        }
        let positions = positions(is_token.as_deref(), past, seq);
        Ok(Self { batch, seq, positions, attention, logits, cache, is_token, checkpointing })
    }

    /// A pass over sequences in one row.
    fn packed(
        [batch, seq]: [usize; 2],
        packing: Packing,
        logits: LogitPositions,
        checkpointing: Checkpointing,
        max_positions: usize,
    ) -> Result<Self> {
        if [batch, seq] != [1, packing.len()] {
            bail!("{} packed tokens are an input of shape {:?}, got {:?}", packing.len(), [1, packing.len()], [batch, seq]);
        }
        let positions: Vec<usize> = packing.positions().collect();
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        if longest > max_positions {
            bail!("{longest} tokens are more than the {max_positions} positions of the model (max_position_embeddings)");
        }
        let attention = AttentionOptions::causal().with_packing(packing);
        let positions = Positions::PerRow(positions);
        Ok(Self { batch, seq, positions, attention, logits, cache: None, is_token: None, checkpointing })
    }

    pub(crate) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The positions as ids to look up, `(1, seq)` or `(batch, seq)`.
    pub(crate) fn position_ids(&self, device: &Device) -> Result<Tensor> {
        let (rows, ids): (_, Vec<usize>) = match &self.positions {
            Positions::Shared(range) => (1, range.clone().collect()),
            Positions::PerRow(positions) => (self.batch, positions.clone()),
        };
        let ids = ids.into_iter().map(|id| id as i64).collect();
        Tensor::from_vec(ids, (rows, self.seq), device)
    }

    /// The numbers of blocks that are computed again together, from the first on; see [`Checkpointing`].
    pub(crate) fn segments(&self, blocks: usize) -> Vec<usize> {
        if self.cache.is_some() { vec![] } else { self.checkpointing.segments(blocks) }
    }

    /// The same pass for blocks that run apart from it, without a cache.
    pub(crate) fn without_cache(&self) -> Sequence<'static> {
        Sequence {
            batch: self.batch,
            seq: self.seq,
            positions: self.positions.clone(),
            attention: self.attention.clone(),
            logits: LogitPositions::All,
            cache: None,
            is_token: None,
            checkpointing: Checkpointing::None,
        }
    }

    /// Attention of one layer over the past and the new tokens; all are `(batch, heads, seq, head_dim)`.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: Option<f64>,
    ) -> Result<Tensor> {
        self.attention.scale = scale;
        match &mut self.cache {
            Some(cache) => {
                let (k, v) = cache.append(layer, k, v)?;
                attention(q, &k, &v, &self.attention)
            }
            None => attention(q, k, v, &self.attention),
        }
    }

    /// As [`Sequence::attend`] over the new tokens alone, straight from projections `(batch, seq, heads * head_dim)` to one, if there is
    /// no past and none is to be kept.
    pub(crate) fn attend_new(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        heads: Heads,
        rotary: Option<Rotary<'_>>,
        scale: Option<f64>,
    ) -> Option<Result<Tensor>> {
        self.attention.scale = scale;
        self.cache.is_none().then(|| multi_head_attention(q, k, v, heads, rotary, &self.attention))
    }

    /// The hidden states `(batch, n, hidden)` of the positions that were asked for, from those of all. Ends the pass: what was added
    /// to the cache counts from here on.
    pub(crate) fn finish(self, hidden: Tensor) -> Result<Tensor> {
        let hidden = match &self.logits {
            LogitPositions::All => hidden,
            LogitPositions::Last => match self.last_tokens() {
                Some(columns) => self.select(&hidden, &columns)?,
                None => hidden.narrow(1, self.seq - 1, 1)?,
            },
            LogitPositions::At(columns) => self.select(&hidden, &self.columns(columns)?)?,
        };
        match self.cache {
            Some(cache) => {
                cache.commit(self.seq, self.is_token);
                Ok(hidden.detach())
            }
            None => Ok(hidden),
        }
    }

    /// The last column of each row that is a token, unless that is the last one everywhere.
    fn last_tokens(&self) -> Option<Vec<Vec<usize>>> {
        let new = self.is_token.as_ref()?.iter().map(|row| &row[row.len() - self.seq..]);
        let last: Vec<usize> = new.map(|row| row.iter().rposition(|t| *t).unwrap_or(self.seq - 1)).collect();
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
fn positions(is_token: Option<&[Vec<bool>]>, past: usize, seq: usize) -> Positions {
    let shared = Positions::Shared(past..past + seq);
    let Some(rows) = is_token else { return shared };
    let mut positions = Vec::with_capacity(rows.len() * seq);
    let mut all_shared = true;
    for row in rows {
        let mut tokens = row[..past].iter().filter(|is_token| **is_token).count();
        for (column, is_token) in row.iter().enumerate().skip(past) {
            positions.push(tokens);
            if *is_token {
                all_shared &= tokens == column;
                tokens += 1;
            }
        }
    }
    if all_shared { shared } else { Positions::PerRow(positions) }
}
