//! A TinyLoRA as an ordinary LoRA: the same model, without a decomposition and without the base.

use crate::fixture::{Case, assert_close};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::lora::{LoraConfig, to_lora};

const CASES: [&str; 14] = [
    "tinylora_default",
    "tinylora_all_linear_tied",
    "tinylora_partial_tying",
    "tinylora_odd_groups",
    "tinylora_no_projection",
    "tinylora_no_projection_u3r1",
    "tinylora_embedding",
    "tinylora_rank_clamped",
    "tinylora_bf16",
    "tinylora_layers_to_transform",
    "tinylora_modules_to_save",
    "tinylora_regex",
    "gpt2_conv1d",
    "gpt2_conv1d_bias_all",
];

#[test]
fn the_lora_computes_what_the_tinylora_computes() {
    let registry = candle_peft::registry().unwrap();
    for name in CASES {
        let case = Case::open(name);
        let lora =
            to_lora(&DetachedAdapter::open(&case.dir, &registry).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let dir = tempfile::tempdir().unwrap();
        lora.save(dir.path()).unwrap();
        let mut model = case.base_model();
        model.load_adapter("lora", dir.path(), &registry).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(model.adapter("lora").unwrap().config.method.downcast_ref::<LoraConfig>().is_some());
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), case.tolerance());
    }
}

#[test]
fn the_rank_is_that_of_the_factors() {
    let registry = candle_peft::registry().unwrap();
    for (name, rank) in [("tinylora_default", 2), ("tinylora_no_projection_u3r1", 1), ("tinylora_rank_clamped", 16)] {
        let adapter = DetachedAdapter::open(Case::open(name).dir, &registry).unwrap();
        let lora = to_lora(&adapter).unwrap();
        let config = lora.config.method.downcast_ref::<LoraConfig>().unwrap();
        assert_eq!((config.r, config.lora_alpha), (rank, rank as f64), "{name}");
        assert!(config.rank_pattern.is_empty(), "{name}");
        for (key, tensor) in lora.tensors.iter().filter(|(key, _)| key.ends_with("lora_A.weight")) {
            assert_eq!(tensor.dims()[0], rank, "{name}: {key}");
        }
    }
}

#[test]
fn converting_a_lora_folds_its_scaling_in() {
    let registry = candle_peft::registry().unwrap();
    for name in ["lora_default", "lora_rslora_rank_pattern", "lora_embedding", "converted_lora_threshold"] {
        let case = Case::open(name);
        let lora = to_lora(&DetachedAdapter::open(&case.dir, &registry).unwrap()).unwrap();
        let mut model = case.base_model();
        model.add_from_source("lora", lora.config, &lora.tensors).unwrap();
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), 1e-5);
    }
}
