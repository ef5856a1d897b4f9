//! Keys and values of past tokens, so that generation computes each token once.

use candle_core::{Result, Tensor, bail};

/// The keys and values of the tokens a model has seen, made by [`CausalLanguageModel::new_cache`](crate::CausalLanguageModel::new_cache).
///
/// Buffers double as they fill, so adding a token costs the same on average at any length. A pass that fails leaves the cache as
/// it was.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    max_len: usize,
    /// By row and column, where any padding was marked.
    is_token: Option<Vec<Vec<bool>>>,
}

#[derive(Debug, Default)]
struct LayerCache {
    keys: Option<Tensor>,
    values: Option<Tensor>,
}

impl KvCache {
    /// An empty cache for a model of so many layers and at most `max_len` positions.
    pub(crate) fn new(layers: usize, max_len: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerCache::default()).collect(), len: 0, max_len, is_token: None }
    }

    /// Number of columns seen so far, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens; the memory is kept for the next sequences.
    pub fn reset(&mut self) {
        self.len = 0;
        self.is_token = None;
    }

    /// Which columns seen so far are tokens, where any padding was marked.
    pub(crate) fn is_token(&self) -> Option<&[Vec<bool>]> {
        self.is_token.as_deref()
    }

    /// Writes the keys and values `(batch, heads, seq, width)` of new tokens after the old ones and returns all of them.
    ///
    /// The new tokens count from [`KvCache::commit`] on, when every layer has written.
    pub(crate) fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let layers = self.layers.len();
        let Some(layer) = self.layers.get_mut(layer) else {
            bail!("the key-value cache was made for a model of {layers} layers, this model has more")
        };
        Ok((
            write(&mut layer.keys, self.len, self.max_len, keys)?,
            write(&mut layer.values, self.len, self.max_len, values)?,
        ))
    }

    /// Counts `seq` new columns as seen.
    pub(crate) fn commit(&mut self, seq: usize, is_token: Option<Vec<Vec<bool>>>) {
        self.len += seq;
        self.is_token = is_token;
    }
}

/// Writes `new` behind the first `len` columns of a buffer `(batch, heads, capacity, width)`; returns a view of both.
fn write(buffer: &mut Option<Tensor>, len: usize, max_len: usize, new: &Tensor) -> Result<Tensor> {
    let (batch, heads, seq, width) = new.dims4()?;
    let end = len + seq;
    let fits = |old: &Tensor| {
        let dims = old.dims();
        dims[0] == batch && dims[1] == heads && dims[3] == width && old.dtype() == new.dtype()
    };
    let roomy = match buffer.take() {
        Some(old) if fits(&old) && old.dim(2)? >= end => old,
        Some(old) if len > 0 && !fits(&old) => {
            let message = format!(
                "the key-value cache holds {:?} {}, not {:?} {}",
                old.dims(),
                old.dtype().as_str(),
                new.dims(),
                new.dtype().as_str()
            );
            *buffer = Some(old);
            bail!("{message}; reset it before other sequences")
        }
        old => {
            let capacity = end.next_power_of_two().min(max_len).max(end);
            let larger = Tensor::zeros((batch, heads, capacity, width), new.dtype(), new.device())?;
            if let Some(old) = old.filter(|_| len > 0) {
                larger.slice_set(&old.narrow(2, 0, len)?.contiguous()?, 2, 0)?;
            }
            larger
        }
    };
    roomy.slice_set(&new.detach().contiguous()?, 2, len)?;
    let view = roomy.narrow(2, 0, end)?;
    *buffer = Some(roomy);
    Ok(view)
}
