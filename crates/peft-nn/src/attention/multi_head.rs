use candle_core::{Result, Tensor, bail};

use super::AttentionOptions;
use super::geometry::Geometry;
use super::node::Attention;
use crate::checks::{acc_dtype, ensure_float};

const NAME: &str = "multi-head-attention";

/// The heads that stand side by side in the operands of [`multi_head_attention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Of the queries and of the result.
    pub query: usize,
    /// Of the keys and values; divides the number of query heads.
    pub key_value: usize,
}

/// The tables of a rotary position embedding: see [`rope`](crate::rope).
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// `(keys, head_dim / 2)` or `(batch, keys, head_dim / 2)`, of any float dtype.
    pub cos: &'a Tensor,
    /// Of the same shape.
    pub sin: &'a Tensor,
}

/// [`attention`](crate::attention) of a whole layer, from projection to projection.
///
/// `q` is `(batch, queries, heads * head_dim)`, `k` is `(batch, keys, kv_heads * head_dim)` and `v` is `(batch, keys,
/// kv_heads * value_dim)`, all of one dtype; the result is `(batch, queries, heads * value_dim)`. Queries and keys are
/// first rotated where `rotary` is given: its tables have a row for each key, and the queries stand at the last of
/// them. 16-bit queries and keys are rounded after the rotation, as [`rope`](crate::rope) does.
///
/// The result and the gradients are those of reshaping and transposing to `(batch, heads, positions, head_dim)`,
/// [`rope`](crate::rope), [`attention`](crate::attention), transposing and reshaping back; nothing is copied on the
/// way. No gradient reaches the tables.
pub fn multi_head_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    rotary: Option<Rotary<'_>>,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let geometry = Geometry::merged(NAME, [q, k, v], heads.query, heads.key_value)?;
    let mut op = Attention::new(NAME, [q, k, v], geometry, options)?;
    op.rotary = rotary.map(|rotary| tables(NAME, rotary, q, &geometry)).transpose()?;
    op.apply([q, k, v])
}

/// cos and sin, contiguous and in the dtype of the arithmetic.
pub(super) fn tables(name: &str, rotary: Rotary<'_>, q: &Tensor, geometry: &Geometry) -> Result<(Tensor, Tensor)> {
    let Geometry { batch, queries, keys, head_dim, .. } = *geometry;
    if !head_dim.is_multiple_of(2) {
        bail!("{name}: head_dim is even where it is rotated, got {head_dim}");
    }
    if queries > keys {
        bail!("{name}: {queries} queries have no place in rotary tables for {keys} keys");
    }
    let (shared, per_row) = ([keys, head_dim / 2], [batch, keys, head_dim / 2]);
    let table = |what: &str, table: &Tensor| {
        ensure_float(name, what, table)?;
        if table.dims() != shared && table.dims() != per_row {
            bail!("{name}: {what} has shape {:?}, expected {shared:?} or {per_row:?}", table.dims());
        }
        table.detach().to_dtype(acc_dtype(q.dtype()))?.contiguous()
    };
    let (cos, sin) = (table("cos", rotary.cos)?, table("sin", rotary.sin)?);
    if cos.rank() != sin.rank() {
        bail!("{name}: cos has shape {:?} but sin {:?}", cos.dims(), sin.dims());
    }
    Ok((cos, sin))
}
