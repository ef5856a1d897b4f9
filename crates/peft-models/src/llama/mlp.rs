//! The gated feed-forward layer of a Llama block.

use super::LlamaConfig;
use crate::layers::linear;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use peft_core::adaptable;
use peft_core::nn::Linear;

#[derive(Clone, Debug)]
pub(super) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

adaptable!(Mlp { gate_proj, up_proj, down_proj });

impl Mlp {
    pub(super) fn new(config: &LlamaConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let linear =
            |input, output, name: &str| linear(input, output, config.mlp_bias, config.initializer_range, &vb.pp(name));
        Ok(Self {
            gate_proj: linear(hidden, intermediate, "gate_proj")?,
            up_proj: linear(hidden, intermediate, "up_proj")?,
            down_proj: linear(intermediate, hidden, "down_proj")?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&peft_nn::swiglu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}
