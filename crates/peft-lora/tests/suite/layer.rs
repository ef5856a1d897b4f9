//! Forward, delta and factors say the same.

use candle_core::{DType, Device, Module, Tensor};
use peft_core::nn::{Embedding, Linear};
use peft_core::torch_rng::TorchRng;
use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable};
use peft_lora::{LoraConfig, LoraInit};

struct Model {
    embed: Embedding,
    up: Linear,
    conv: Linear,
}
adaptable!(Model { embed, up, conv });

fn model(dtype: DType) -> PeftModel<Model> {
    let mut rng = TorchRng::new(5);
    let mut weight = |rows, cols| {
        Tensor::from_vec(rng.normal(0.0, 1.0, rows * cols), (rows, cols), &Device::Cpu)
            .unwrap()
            .to_dtype(dtype)
            .unwrap()
    };
    let base = Model {
        embed: Embedding::new(weight(11, 6)).scaled(2.0),
        up: Linear::new(weight(9, 6), None),
        conv: Linear::from_transposed(weight(9, 7), None),
    };
    let mut model = PeftModel::new(base);
    let mut config = LoraConfig::with_rank(2, TargetSpec::new(ModuleNames::list(["embed", "up", "conv"])));
    config.init_lora_weights = LoraInit::Random;
    config.lora_alpha = 3.0;
    model.add_adapter("default", config).unwrap();
    model.eval().unwrap();
    model
}

fn forward(model: &Model) -> Tensor {
    let ids = Tensor::new(&[[1u32, 10], [3, 3]], &Device::Cpu).unwrap();
    model.conv.forward(&model.up.forward(&model.embed.forward(&ids).unwrap()).unwrap()).unwrap()
}

#[test]
fn merging_gives_what_forward_gives() {
    // Relative to the largest output; bf16 keeps eight bits, and three products follow each other.
    for (dtype, limit) in [(DType::F32, 1e-6), (DType::F64, 1e-14), (DType::BF16, 0.03)] {
        let mut model = model(dtype);
        let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        let adapted = forward(model.base()).to_dtype(DType::F64).unwrap();
        model.merge().unwrap();
        let merged = forward(model.base()).to_dtype(DType::F64).unwrap();
        let relative = largest(&(&adapted - merged).unwrap()) / largest(&adapted);
        assert!(relative <= limit, "{dtype:?}: {relative}");
    }
}

#[test]
fn inference_builds_no_graph_and_training_reaches_every_factor() {
    let mut model = model(DType::F32);
    assert!(!forward(model.base()).track_op());
    model.train().unwrap();
    let grads = forward(model.base()).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    model.audit_gradients(&grads).unwrap();
    assert_eq!(model.trainable().len(), 6);
}
