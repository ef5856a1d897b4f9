//! Adapters and base models to export.

use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::{AdapterConfig, ModuleNames, Registry, TargetSpec};
use peft_export::BaseModel;
use peft_lora::LoraConfig;
use peft_testkit::fixture::{FixtureCase, case};
use peft_testkit::tiny::noise;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Cases that both formats can hold.
pub(crate) const CASES: [&str; 10] = [
    "tinylora_default",
    "tinylora_all_linear_tied",
    "tinylora_layers_to_transform",
    "tinylora_regex",
    "tinylora_embedding",
    "lora_default",
    "lora_rslora_rank_pattern",
    "lora_embedding",
    "gpt2_conv1d",
    "lora_gpt2_conv1d",
];

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<peft_tinylora::TinyLoraConfig>().unwrap().register::<LoraConfig>().unwrap();
    registry
}

/// A case of `tests/fixtures`: the adapter, its base, and what PEFT computed.
pub(crate) fn fixture(name: &str) -> (DetachedAdapter, BaseModel, FixtureCase) {
    let case = case(name).unwrap();
    let adapter = DetachedAdapter::open(&case.adapter, &registry()).unwrap();
    (adapter, BaseModel::open(&case.base).unwrap(), case)
}

/// A base model of this kind with 4 heads, 2 of them for keys, and 3 blocks, after `change` of its config.
pub(crate) fn base_with(model_type: &str, change: impl FnOnce(&mut Value)) -> BaseModel {
    let mut config = json!({
        "model_type": model_type, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": false,
    });
    change(&mut config);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    BaseModel::open(folder.path()).unwrap()
}

pub(crate) fn base(model_type: &str) -> BaseModel {
    base_with(model_type, |_| ())
}

/// A LoRA module: its path, the rows and columns of its weight, and its rank.
pub(crate) type Module<'a> = (&'a str, usize, usize, usize);

/// A LoRA on these modules with random factors and `lora_alpha = 3`.
pub(crate) fn lora(modules: &[Module<'_>]) -> DetachedAdapter {
    let paths: Vec<&str> = modules.iter().map(|(path, ..)| *path).collect();
    let mut config = LoraConfig::with_rank(modules[0].3, TargetSpec::new(ModuleNames::list(paths)));
    config.lora_alpha = 3.0;
    let mut tensors = BTreeMap::new();
    for (index, (path, rows, cols, r)) in modules.iter().copied().enumerate() {
        config.rank_pattern.insert(path.replace('.', "\\."), r);
        let embedding = ["embed_tokens", "wte", "wpe"].iter().any(|name| path.ends_with(name));
        let (names, shape_a, shape_b) = match embedding {
            true => (["lora_embedding_A", "lora_embedding_B"], (r, rows), (cols, r)),
            false => (["lora_A.weight", "lora_B.weight"], (r, cols), (rows, r)),
        };
        for (name, shape, seed) in [(names[0], shape_a, 2 * index), (names[1], shape_b, 2 * index + 1)] {
            tensors.insert(format!("base_model.model.{path}.{name}"), noise(shape, DType::F32, seed as u64).unwrap());
        }
    }
    DetachedAdapter::from_source(AdapterConfig::from(config), &tensors).unwrap()
}

/// The delta of one module of an adapter in f64, `(rows, cols)`.
pub(crate) fn delta(adapter: &DetachedAdapter, path: &str) -> Tensor {
    let site = adapter.sites.iter().find(|site| site.path == path).unwrap();
    let factors = site.layer.lora_factors().unwrap().unwrap();
    (product(&factors.b, &factors.a) * factors.scale).unwrap()
}

/// `b a` in f64.
pub(crate) fn product(b: &Tensor, a: &Tensor) -> Tensor {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().contiguous().unwrap();
    wide(b).matmul(&wide(a)).unwrap()
}

/// Asserts that two deltas are one, up to the rounding of their factors to f32.
#[track_caller]
pub(crate) fn assert_same(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    let expected = expected.to_dtype(DType::F64).unwrap();
    let difference = largest(&(found - &expected).unwrap());
    assert!(difference <= 1e-6 * largest(&expected), "{what}: {difference}");
}

pub(crate) fn zeros(rows: usize, cols: usize) -> Tensor {
    Tensor::zeros((rows, cols), DType::F64, &Device::Cpu).unwrap()
}
