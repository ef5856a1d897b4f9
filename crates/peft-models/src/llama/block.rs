//! One block of a Llama: attention, then feed-forward, each after a norm and beside a residual.

use super::LlamaConfig;
use super::attention::Attention;
use super::mlp::Mlp;
use super::rope::Rotation;
use crate::blocks;
use crate::layers::{residual, rms_norm};
use crate::sequence::Sequence;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use peft_core::adaptable;
use peft_core::nn::RmsNorm;

#[derive(Clone, Debug)]
pub(super) struct Block {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

adaptable!(Block { self_attn, mlp, input_layernorm, post_attention_layernorm });

impl Block {
    pub(super) fn new(index: usize, config: &LlamaConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = |name: &str| rms_norm(config.hidden_size, config.rms_norm_eps, &vb.pp(name));
        Ok(Self {
            self_attn: Attention::new(index, config, &vb.pp("self_attn"))?,
            mlp: Mlp::new(config, &vb.pp("mlp"))?,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        })
    }
}

impl blocks::Block for Block {
    type Shared = Rotation;

    fn forward(&self, x: &Tensor, rotation: &Rotation, sequence: &mut Sequence<'_>) -> Result<Tensor> {
        let x = &residual(x, &self.self_attn.forward(&self.input_layernorm.forward(x)?, rotation, sequence)?)?;
        residual(x, &self.mlp.forward(&self.post_attention_layernorm.forward(x)?)?)
    }
}
