//! Cached attention written in candle's operations: the specification, and the path of devices without a kernel.

use candle_core::{Result, Tensor};

use super::cache::Part;
use super::memory::TensorPage;
use super::{CachedAttention, CachedPass, KeyValueCache};
use crate::attention::{AttentionOptions, attention};
use crate::graph::Value;
use crate::rope::rope;

const PAGE: usize = KeyValueCache::PAGE;

pub(super) fn forward(
    op: &CachedAttention,
    pages: &mut [TensorPage],
    pass: &CachedPass,
    layer: usize,
) -> Result<Value> {
    let g = op.geometry;
    let mut outputs = Vec::with_capacity(pass.parts().len());
    for part in pass.parts() {
        let separate = |x: &Tensor, heads: usize, width: usize| {
            let x = x.narrow(1, part.tokens.start, part.tokens.len())?;
            x.reshape((1, part.tokens.len(), heads, width))?.transpose(1, 2)?.contiguous()
        };
        let (mut q, mut k) = (separate(&op.q, g.heads, g.head_dim)?, separate(&op.k, g.kv_heads, g.head_dim)?);
        let v = separate(&op.v, g.kv_heads, g.value_dim)?;
        if let Some((cos, sin)) = &op.rotary {
            let rows = |table: &Tensor| table.narrow(table.rank() - 2, part.tokens.start, part.tokens.len());
            (q, k) = (rope(&q, &rows(cos)?, &rows(sin)?)?, rope(&k, &rows(cos)?, &rows(sin)?)?);
        }
        let [k, v] = [(0, k), (1, v)].map(|(which, new)| through_pages(pages, part, layer, which, &new));
        let output = attention(&q, &k?, &v?, &AttentionOptions::causal().with_scale(op.scale))?;
        outputs.push(output.transpose(1, 2)?.reshape((1, part.tokens.len(), g.heads * g.value_dim))?);
    }
    Ok(Value::Tensor(Tensor::cat(&outputs, 1)?))
}

/// Adds keys or values, `(1, kv_heads, tokens, width)`, to a sequence; returns all of them.
fn through_pages(pages: &mut [TensorPage], part: &Part, layer: usize, which: usize, new: &Tensor) -> Result<Tensor> {
    let (new, len) = (new.squeeze(0)?, part.past + part.tokens.len());
    let mut at = part.past;
    while at < len {
        let (slot, first) = (at % PAGE, at - part.past);
        let count = (PAGE - slot).min(len - at);
        let page = &pages[part.pages[at / PAGE]][layer][which];
        page.slice_set(&new.narrow(1, first, count)?.contiguous()?, 1, slot)?;
        at += count;
    }
    let used: Vec<&Tensor> = part.pages.iter().map(|page| &pages[*page][layer][which]).collect();
    Tensor::cat(&used, 1)?.narrow(1, 0, len)?.unsqueeze(0)
}
