//! Attention of new tokens over the keys and values that a cache has of those before them.

mod cache;
mod composed;
mod memory;
mod pages;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

pub(super) use cache::Part;
pub use cache::{CachedPass, Extension, KeyValueCache, SequenceId};
pub(super) use memory::Memory;
pub(super) use pages::{InPages, PagePointers};

use super::geometry::Geometry;
use super::multi_head::{Heads, Rotary, tables};
use super::node::with_contiguous_rows;
use crate::checks::{ensure_dtype, ensure_float};

const NAME: &str = "cached-attention";

/// One cached attention: its operands, detached and as they lie in memory.
pub(super) struct CachedAttention {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    /// Of all new tokens, as if they were one sequence.
    pub(super) geometry: Geometry,
    /// cos and sin, contiguous, in the dtype of the arithmetic, a row for each new token.
    pub(super) rotary: Option<(Tensor, Tensor)>,
    pub(super) scale: f64,
}

/// Causal attention of a layer over sequences of different lengths, whose keys and values a cache holds; adds those of the new tokens.
///
/// `q` is `(1, tokens, heads * head_dim)`, `k` is `(1, tokens, kv_heads * head_dim)` and `v` is `(1, tokens, kv_heads *
/// value_dim)`, all of one dtype: the new tokens of the pass, sequence by sequence. The result is `(1, tokens, heads *
/// value_dim)`. Queries and keys are first rotated where `rotary` is given; its tables have a row for each new token. Scores are
/// multiplied by `scale`, `1 / sqrt(head_dim)` unless given.
///
/// What a token gets depends on its own sequence alone, to the last bit: neither on the others of the pass, nor on how many of the
/// sequence's tokens came in one pass, nor on the number of threads. The result is not tracked: there is no backward pass.
///
/// # Errors
/// When shapes or dtypes do not fit together or to the cache, or the pass is not one of this cache.
#[allow(clippy::too_many_arguments)]
pub fn cached_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    rotary: Option<Rotary<'_>>,
    scale: Option<f64>,
    cache: &mut KeyValueCache,
    pass: &CachedPass,
    layer: usize,
) -> Result<Tensor> {
    let geometry = Geometry::merged(NAME, [q, k, v], heads.query, heads.key_value)?;
    ensure_float(NAME, "query", q)?;
    ensure_dtype(NAME, "key", k, q.dtype())?;
    ensure_dtype(NAME, "value", v, q.dtype())?;
    if geometry.batch != 1 || geometry.queries != pass.tokens() {
        let (tokens, dims) = (pass.tokens(), q.dims());
        bail!("{NAME}: the pass has {tokens} tokens, so the query is (1, {tokens}, heads * head_dim), got {dims:?}");
    }
    let [q, k, v] = [q, k, v].map(|operand| with_contiguous_rows(&operand.detach()));
    let (q, k, v) = (q?, k?, v?);
    let scale = scale.unwrap_or_else(|| 1.0 / (geometry.head_dim as f64).sqrt());
    let rotary = rotary.map(|rotary| tables(NAME, rotary, &q, &geometry)).transpose()?;
    let op = CachedAttention { q, k, v, geometry, rotary, scale };
    let memory = cache.memory_for(&op, layer)?;
    let value = match memory {
        Memory::Tensors(pages) => composed::forward(&op, pages, pass, layer)?,
        memory => super::cpu::cached(&op, memory, pass, layer)?,
    };
    Ok(value.into_tensor())
}
