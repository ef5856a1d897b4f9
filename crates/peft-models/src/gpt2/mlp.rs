//! The feed-forward layer of a GPT-2 block.

use super::Gpt2Config;
use crate::layers::conv1d;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use peft_core::adaptable;
use peft_core::nn::Linear;

#[derive(Clone, Debug)]
pub(super) struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
}

adaptable!(Mlp { c_fc, c_proj });

impl Mlp {
    pub(super) fn new(config: &Gpt2Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, inner) = (config.n_embd, config.n_inner());
        Ok(Self {
            c_fc: conv1d(width, inner, config.initializer_range, &vb.pp("c_fc"))?,
            c_proj: conv1d(inner, width, config.residual_initializer_range(), &vb.pp("c_proj"))?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&peft_nn::gelu_new(&self.c_fc.forward(x)?)?)
    }
}
