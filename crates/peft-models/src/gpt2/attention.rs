//! Multi-head attention whose queries, keys and values come from one projection.

use super::Gpt2Config;
use crate::layers::conv1d;
use crate::sequence::Sequence;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use peft_core::adaptable;
use peft_core::nn::Linear;
use peft_nn::Heads;

#[derive(Clone, Debug)]
pub(super) struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    /// The block this is part of: its place in the key-value cache.
    index: usize,
    heads: usize,
    scale: f64,
}

adaptable!(Attention { c_attn, c_proj });

impl Attention {
    pub(super) fn new(index: usize, config: &Gpt2Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = config.n_embd;
        let by_width = if config.scale_attn_weights { ((width / config.n_head) as f64).sqrt() } else { 1.0 };
        let by_depth = if config.scale_attn_by_inverse_layer_idx { (index + 1) as f64 } else { 1.0 };
        Ok(Self {
            c_attn: conv1d(width, 3 * width, config.initializer_range, &vb.pp("c_attn"))?,
            c_proj: conv1d(width, width, config.residual_initializer_range(), &vb.pp("c_proj"))?,
            index,
            heads: config.n_head,
            scale: 1.0 / (by_width * by_depth),
        })
    }

    pub(super) fn forward(&self, x: &Tensor, sequence: &mut Sequence<'_>) -> Result<Tensor> {
        let width = x.dim(2)?;
        let qkv = self.c_attn.forward(x)?;
        let part = |i: usize| qkv.narrow(2, i * width, width);
        let [q, k, v] = [part(0)?, part(1)?, part(2)?];
        let heads = Heads { query: self.heads, key_value: self.heads };
        self.c_proj.forward(&sequence.attend(self.index, [&q, &k, &v], heads, None, Some(self.scale))?)
    }
}
