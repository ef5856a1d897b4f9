//! A model for tests of what an adapter needs of its base: two layers large enough to be decomposed by iteration.

use candle_core::{DType, Device, Module, Tensor};
use candle_peft::core::nn::{Embedding, Linear};
use candle_peft::core::{AdapterConfig, adaptable};
use candle_peft::lora::{LoraConfig, LoraInit};
use candle_peft::lora_xs::LoraXsConfig;
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::vera::VeraConfig;
use candle_peft::{ModuleNames, PeftModel, TargetSpec};
use peft_testkit::tiny::noise;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug)]
pub(crate) struct Net {
    embed_tokens: Embedding,
    up: Linear,
    down: Linear,
}
adaptable!(Net { embed_tokens, up, down });

impl Net {
    /// Weights that bf16 holds exactly, in this dtype; `down` has another seed on request.
    pub(crate) fn new(dtype: DType, down: u64) -> Self {
        let weight = |shape: (usize, usize), seed| {
            noise(shape, DType::F32, seed).unwrap().to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap()
        };
        Self {
            embed_tokens: Embedding::new(weight((50, 128), 1)),
            up: Linear::new(weight((160, 128), 2), None),
            down: Linear::from_transposed(weight((160, 128), down), None),
        }
    }

    pub(crate) fn logits(&self) -> Tensor {
        let ids = Tensor::new(&[[1u32, 10, 0], [3, 49, 7]], &Device::Cpu).unwrap();
        let hidden = self.embed_tokens.forward(&ids).unwrap();
        self.down.forward(&self.up.forward(&hidden).unwrap()).unwrap().to_dtype(DType::F32).unwrap().detach()
    }
}

pub(crate) const DOWN: u64 = 3;

/// Paths of weights that were decomposed, and whether their triplets were cached.
pub(crate) type Seen = Arc<Mutex<Vec<(String, bool)>>>;

/// The usual base, and what was decomposed for its adapters.
pub(crate) fn watched() -> (PeftModel<Net>, Seen) {
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    let model = base(DType::F32).with_decomposition_progress(move |progress| {
        assert!(progress.done >= 1 && progress.done <= progress.total);
        log.lock().unwrap().push((progress.path.to_owned(), progress.cached));
    });
    (model, seen)
}

pub(crate) fn base(dtype: DType) -> PeftModel<Net> {
    PeftModel::new(Net::new(dtype, DOWN)).with_base_name("the/base")
}

fn linear() -> TargetSpec {
    TargetSpec::new(ModuleNames::all_linear())
}

pub(crate) fn tinylora() -> AdapterConfig {
    TinyLoraConfig::new(linear()).with_u(13).with_weight_tying(1.0).into()
}

pub(crate) fn lora_xs() -> AdapterConfig {
    LoraXsConfig::with_rank(4, linear()).into()
}

pub(crate) fn pissa() -> AdapterConfig {
    let mut config = LoraConfig::with_rank(8, linear());
    config.init_lora_weights = LoraInit::Pissa;
    config.into()
}

/// Configs whose adapters hold something that follows from the base or the config.
pub(crate) fn derived() -> Vec<(&'static str, AdapterConfig)> {
    let mut unsaved = TinyLoraConfig::new(linear()).with_u(3);
    unsaved.save_projection = false;
    let embedding = TinyLoraConfig::new(TargetSpec::new(ModuleNames::list(["embed_tokens", "up"]))).with_u(3);
    let mut vera = VeraConfig::default();
    vera.targets = TargetSpec::new(ModuleNames::list(["up"]));
    vec![
        ("TinyLoRA", tinylora()),
        ("TinyLoRA without projections", unsaved.into()),
        ("TinyLoRA on an embedding", embedding.into()),
        ("LoRA-XS", lora_xs()),
        ("VeRA", vera.into()),
    ]
}

/// Adds an adapter and moves every trained number.
pub(crate) fn train(model: &mut PeftModel<Net>, config: AdapterConfig) {
    model.add_adapter("default", config).unwrap();
    for (seed, var) in (40..).zip(model.vars()) {
        var.set(&noise(var.shape(), var.dtype(), seed).unwrap()).unwrap();
    }
    model.eval().unwrap();
}
