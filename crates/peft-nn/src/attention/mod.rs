//! Scaled dot-product attention with grouped queries, some queries and some keys at a time.

mod cached;
mod composed;
mod cpu;
mod geometry;
mod multi_head;
mod node;
mod options;
mod packing;
#[cfg(test)]
mod tests;
mod visibility;

use candle_core::{Result, Tensor};

pub use cached::{CachedPass, Extension, KeyValueCache, SequenceId, cached_attention};
pub use multi_head::{Heads, Rotary, multi_head_attention};
pub use options::AttentionOptions;
pub use packing::Packing;

use geometry::Geometry;
use node::Attention;

const NAME: &str = "attention";

/// `softmax(scale * q k^T) v`, over the keys that `options` lets each query see.
///
/// `q` is `(batch, heads, queries, head_dim)`, `k` is `(batch, kv_heads, keys, head_dim)` and `v` is `(batch, kv_heads,
/// keys, value_dim)`, all of one dtype; the result is `(batch, heads, queries, value_dim)`. `heads` is a multiple of
/// `kv_heads`: head `h` reads the keys and values of head `h / (heads / kv_heads)` (grouped-query attention), which are
/// not repeated in memory. The softmax runs in f32 for 16-bit types. A query that sees no key gives zeros.
///
/// On the CPU scores exist a block at a time, after Dao 2023 (FlashAttention-2, arXiv:2307.08691): memory is linear in
/// the number of queries and keys, and blocks that no query of theirs sees are skipped. The backward pass computes them
/// again from two numbers for each query. The gradient reaches those of `q`, `k` and `v` that are tracked, and never a
/// mask.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let geometry = Geometry::separate(NAME, q, k, v)?;
    Attention::new(NAME, [q, k, v], geometry, options)?.apply([q, k, v])
}
