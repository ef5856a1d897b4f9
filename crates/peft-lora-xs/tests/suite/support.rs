//! A model with one host of every kind, in f64.

use candle_core::{DType, Device, Module, Tensor};
use peft_core::nn::{Embedding, Linear};
use peft_core::{ModuleNames, PeftModel, Registry, TargetSpec, adaptable};
use peft_lora_xs::LoraXsConfig;
use peft_testkit::tiny::noise;

/// A scaled embedding of 11 tokens, a layer from 6 to 9 and a Conv1D from 9 to 4.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    embedding: Embedding,
    up: Linear,
    down: Linear,
}
adaptable!(Small { embedding, up, down });

/// What the embedding multiplies its rows with.
pub(crate) const EMBED_SCALE: f64 = 2.0;

/// The weights as `(rows, cols)`.
pub(crate) fn weight(path: &str) -> Tensor {
    let (shape, seed) = match path {
        "embedding" => ((11, 6), 1),
        "up" => ((9, 6), 2),
        _ => ((4, 9), 3),
    };
    noise(shape, DType::F64, seed).unwrap()
}

impl Small {
    pub(crate) fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.down.forward(&self.up.forward(&self.embedding.forward(ids)?)?)
    }
}

pub(crate) fn model() -> PeftModel<Small> {
    PeftModel::new(Small {
        embedding: Embedding::new(weight("embedding")).scaled(EMBED_SCALE),
        up: Linear::new(weight("up"), None),
        down: Linear::from_transposed(weight("down").t().unwrap().contiguous().unwrap(), None),
    })
}

pub(crate) fn ids() -> Tensor {
    Tensor::new(&[[1u32, 10, 0], [3, 3, 7]], &Device::Cpu).unwrap()
}

pub(crate) fn output(model: &PeftModel<Small>) -> Tensor {
    model.base().forward(&ids()).unwrap()
}

/// LoRA-XS of this rank on every host.
pub(crate) fn everywhere(r: usize) -> LoraXsConfig {
    LoraXsConfig::with_rank(r, TargetSpec::new(ModuleNames::list(["embedding", "up", "down"])))
}

/// The model with an adapter of rank 3 and scaling 2 whose every R is of the order of 1, in inference mode.
pub(crate) fn trained() -> PeftModel<Small> {
    let mut config = everywhere(3);
    config.lora_xs_alpha = 6.0;
    let mut model = model();
    model.add_adapter("default", config).unwrap();
    for (seed, (_, var)) in (20..).zip(model.trainable()) {
        var.set(&noise(var.shape(), DType::F64, seed).unwrap()).unwrap();
    }
    model.eval().unwrap();
    model
}

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<LoraXsConfig>().unwrap();
    registry
}
