//! A TinyLoRA as an ordinary LoRA: the same model, without a decomposition and without the base.

use crate::fixture::{Case, DECOMPOSED, DORA, LORA, TINYLORA, assert_close, bits};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::lora::{LoraConfig, to_lora};

#[test]
fn the_lora_computes_what_the_tinylora_computes() {
    let registry = candle_peft::registry().unwrap();
    for name in TINYLORA {
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
    for name in LORA.into_iter().filter(|name| *name != "lora_bias_conv1d") {
        let case = Case::open(name);
        let lora = to_lora(&DetachedAdapter::open(&case.dir, &registry).unwrap()).unwrap();
        let mut model = case.base_model();
        model.add_from_source("lora", lora.config, &lora.tensors).unwrap();
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), 1e-5);
    }
}

#[test]
fn what_began_as_a_part_of_the_weight_becomes_the_lora_that_peft_makes_of_it() {
    let registry = candle_peft::registry().unwrap();
    for name in DECOMPOSED {
        let case = Case::open(name);
        let lora = to_lora(&case.adapted().detached("default").unwrap()).unwrap();
        let mut model = case.base_model();
        model.add_from_source("here", lora.config, &lora.tensors).unwrap();
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), case.tolerance());
        let mut model = case.base_model();
        model.load_adapter("peft", case.dir.join("converted"), &registry).unwrap();
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), 1e-5);
        // The weight is not in the file, and without it the part that was taken out of it cannot be known.
        let error = DetachedAdapter::open(&case.dir, &registry).unwrap_err().to_string();
        assert!(error.contains("without its base model"), "{error}");
    }
}

#[test]
fn what_is_not_a_product_is_refused_by_name() {
    let registry = candle_peft::registry().unwrap();
    for name in DORA.into_iter().chain(["lora_bias_conv1d"]) {
        let error = to_lora(&DetachedAdapter::open(Case::open(name).dir, &registry).unwrap()).unwrap_err().to_string();
        assert!(error.contains("not a product"), "{name}: {error}");
    }
}

#[test]
fn an_attached_adapter_converts_to_the_same_lora_as_its_file() {
    let registry = candle_peft::registry().unwrap();
    for name in TINYLORA {
        let case = Case::open(name);
        let from_file = to_lora(&DetachedAdapter::open(&case.dir, &registry).unwrap()).unwrap();
        let from_model = to_lora(&case.adapted().detached("default").unwrap()).unwrap();
        assert_eq!(from_file.config.to_json().unwrap(), from_model.config.to_json().unwrap(), "{name}");
        assert_eq!(
            from_file.tensors.keys().collect::<Vec<_>>(),
            from_model.tensors.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (key, tensor) in &from_file.tensors {
            assert_eq!(bits(tensor), bits(&from_model.tensors[key]), "{name}: {key}");
        }
    }
}
