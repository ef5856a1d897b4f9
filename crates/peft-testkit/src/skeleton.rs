//! Models that are nothing but hosts at paths, for tests of what a config selects.

use candle_core::{DType, Result, Tensor};
use peft_core::nn::{Embedding, Linear, RmsNorm};
use peft_core::{Adaptable, Walk, WalkMut};

/// Hosts at paths, in visit order. It has no forward pass.
#[derive(Default)]
pub struct Skeleton {
    model_type: Option<String>,
    hosts: Vec<(String, Box<dyn Adaptable>)>,
}

/// The sides of every weight; small, for nobody computes with them.
const SIDE: usize = 3;

fn weight() -> Result<Tensor> {
    crate::tiny::noise((SIDE, SIDE), DType::F32, 1)
}

impl Skeleton {
    /// A model without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same model with a `model_type`.
    pub fn of_type(mut self, model_type: &str) -> Self {
        self.model_type = Some(model_type.to_owned());
        self
    }

    fn with(mut self, path: &str, host: impl Adaptable + 'static) -> Self {
        self.hosts.push((path.to_owned(), Box::new(host)));
        self
    }

    /// The same model with one more linear layer.
    pub fn linear(self, path: &str) -> Result<Self> {
        Ok(self.with(path, Linear::new(weight()?, None)))
    }

    /// The same model with an output head.
    pub fn head(self, path: &str) -> Result<Self> {
        Ok(self.with(path, Linear::new(weight()?, None).output_head()))
    }

    /// The same model with a token embedding.
    pub fn embedding(self, path: &str) -> Result<Self> {
        Ok(self.with(path, Embedding::new(weight()?).input_embedding()))
    }

    /// The same model with a norm.
    pub fn norm(self, path: &str) -> Result<Self> {
        let ones = Tensor::ones(SIDE, DType::F32, &candle_core::Device::Cpu)?;
        Ok(self.with(path, RmsNorm::new(ones, 1e-6)))
    }

    /// The hosts of a Llama with this many layers, in their order and under their names.
    pub fn llama(layers: usize) -> Result<Self> {
        let mut model = Self::new().of_type("llama").embedding("model.embed_tokens")?;
        for layer in 0..layers {
            for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
                model = model.linear(&format!("model.layers.{layer}.{name}"))?;
            }
            for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
                model = model.linear(&format!("model.layers.{layer}.{name}"))?;
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                model = model.norm(&format!("model.layers.{layer}.{name}"))?;
            }
        }
        model.norm("model.norm")?.head("lm_head")
    }
}

impl Adaptable for Skeleton {
    fn visit(&self, walk: &mut Walk<'_>) -> peft_core::Result<()> {
        self.hosts.iter().try_for_each(|(path, host)| walk.child(path, host.as_ref()))
    }

    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> peft_core::Result<()> {
        self.hosts.iter_mut().try_for_each(|(path, host)| walk.child(path, host.as_mut()))
    }

    fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }
}
