//! A model of two layers of different shapes.

use candle_core::{DType, Device, Module, Tensor};
use peft_core::nn::Linear;
use peft_core::{ModuleNames, PeftModel, Registry, TargetSpec, adaptable};
use peft_testkit::tiny::noise;
use peft_vera::VeraConfig;
use std::collections::BTreeMap;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// `up` widens 6 to 10, `down` narrows 10 to 4.
#[derive(Clone, Debug)]
pub(crate) struct Mlp {
    up: Linear,
    down: Linear,
}
adaptable!(Mlp { up, down });

impl Mlp {
    pub(crate) fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.down.forward(&self.up.forward(xs)?.tanh()?)
    }
}

pub(crate) fn model() -> PeftModel<Mlp> {
    let weight = |shape: (usize, usize), seed| noise(shape, DType::F32, seed).unwrap();
    PeftModel::new(Mlp { up: Linear::new(weight((10, 6), 1), None), down: Linear::new(weight((4, 10), 2), None) })
}

/// What the model makes of some input.
pub(crate) fn output(model: &PeftModel<Mlp>) -> Tensor {
    let input = noise((3, 6), DType::F32, 3).unwrap();
    model.base().forward(&input).unwrap()
}

/// VeRA of rank 5 on these layers.
pub(crate) fn on(names: &[&str]) -> VeraConfig {
    VeraConfig::new(TargetSpec::new(ModuleNames::list(names.iter().copied()))).with_r(5)
}

/// The same with vectors that change something.
pub(crate) fn stirred(names: &[&str]) -> VeraConfig {
    let mut config = on(names);
    config.init_weights = false;
    config
}

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<VeraConfig>().unwrap();
    registry
}

/// What a checkpoint of one adapter holds.
pub(crate) fn saved(model: &PeftModel<Mlp>, name: &str) -> Tensors {
    let params = &model.adapter(name).unwrap().params;
    params.persisted().map(|(key, tensor)| (key.to_string(), tensor.copy().unwrap())).collect()
}

/// Why a checkpoint does not load; the model must be as before.
pub(crate) fn refusal(config: VeraConfig, tensors: &Tensors) -> String {
    let mut model = model();
    let before = output(&model);
    let error = model.add_from_source("default", config, tensors).map(drop).unwrap_err().to_string();
    peft_testkit::assert::assert_same("the output", &output(&model), &before);
    error
}

pub(crate) fn zeros(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}
