//! One block of a GPT-2: attention, then feed-forward, each after a norm and beside a residual.

use super::Gpt2Config;
use super::attention::Attention;
use super::mlp::Mlp;
use crate::blocks;
use crate::layers::{layer_norm, residual};
use crate::sequence::Sequence;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use peft_core::adaptable;
use peft_core::nn::LayerNorm;

#[derive(Clone, Debug)]
pub(super) struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

adaptable!(Block { ln_1, attn, ln_2, mlp });

impl Block {
    pub(super) fn new(index: usize, config: &Gpt2Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = |name: &str| layer_norm(config.n_embd, config.layer_norm_epsilon, &vb.pp(name));
        Ok(Self {
            ln_1: norm("ln_1")?,
            attn: Attention::new(index, config, &vb.pp("attn"))?,
            ln_2: norm("ln_2")?,
            mlp: Mlp::new(config, &vb.pp("mlp"))?,
        })
    }
}

impl blocks::Block for Block {
    type Shared = ();

    fn forward(&self, x: &Tensor, (): &(), sequence: &mut Sequence<'_>) -> Result<Tensor> {
        let x = &residual(x, &self.attn.forward(&self.ln_1.forward(x)?, sequence)?)?;
        residual(x, &self.mlp.forward(&self.ln_2.forward(x)?)?)
    }
}
