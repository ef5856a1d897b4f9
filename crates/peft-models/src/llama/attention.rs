//! Grouped-query attention with rotary positions.

use super::LlamaConfig;
use super::rope::Rotation;
use crate::layers::linear;
use crate::sequence::Sequence;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use peft_core::adaptable;
use peft_core::nn::Linear;
use peft_nn::Heads;

#[derive(Clone, Debug)]
pub(super) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// The block this is part of: its place in the key-value cache.
    index: usize,
    heads: Heads,
}

adaptable!(Attention { q_proj, k_proj, v_proj, o_proj });

impl Attention {
    pub(super) fn new(index: usize, config: &LlamaConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let head_dim = config.head_dim();
        let (queries, keys) = (config.num_attention_heads * head_dim, config.num_key_value_heads() * head_dim);
        let linear = |input, output, name: &str| {
            linear(input, output, config.attention_bias, config.initializer_range, &vb.pp(name))
        };
        Ok(Self {
            q_proj: linear(config.hidden_size, queries, "q_proj")?,
            k_proj: linear(config.hidden_size, keys, "k_proj")?,
            v_proj: linear(config.hidden_size, keys, "v_proj")?,
            o_proj: linear(queries, config.hidden_size, "o_proj")?,
            index,
            heads: Heads { query: config.num_attention_heads, key_value: config.num_key_value_heads() },
        })
    }

    pub(super) fn forward(&self, x: &Tensor, rotation: &Rotation, sequence: &mut Sequence<'_>) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        let y = sequence.attend(self.index, [&q, &k, &v], self.heads, Some(rotation.as_tables()), None)?;
        self.o_proj.forward(&y)
    }
}
