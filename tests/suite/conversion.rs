//! A TinyLoRA as an ordinary LoRA: the same model, without a decomposition and without the base.

use crate::fixture::{Case, TINYLORA, VERA, assert_close, bits, difference};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::lora::{LoraConfig, to_lora};
use candle_peft::lora_xs::LoraXsConfig;
use candle_peft::{ModuleNames, TargetSpec};

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
    for name in ["lora_default", "lora_rslora_rank_pattern", "lora_embedding", "converted_lora_threshold"] {
        let case = Case::open(name);
        let lora = to_lora(&DetachedAdapter::open(&case.dir, &registry).unwrap()).unwrap();
        let mut model = case.base_model();
        model.add_from_source("lora", lora.config, &lora.tensors).unwrap();
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), 1e-5);
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

#[test]
fn a_vera_converts_on_its_base() {
    let registry = candle_peft::registry().unwrap();
    for name in VERA {
        let case = Case::open(name);
        let error = DetachedAdapter::open(&case.dir, &registry).unwrap_err().to_string();
        assert!(error.contains("VERA") && error.contains("the base model must be given too"), "{name}: {error}");
        let lora = to_lora(&case.adapted().detached("default").unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let dir = tempfile::tempdir().unwrap();
        lora.save(dir.path()).unwrap();
        let mut model = case.base_model();
        model.load_adapter("lora", dir.path(), &registry).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), case.tolerance());
    }
}

#[test]
fn a_lora_xs_converts_without_its_base() {
    let registry = candle_peft::registry().unwrap();
    let llama = ("lora_default", ["embed_tokens", "q_proj", "down_proj"].as_slice());
    for (name, targets) in [llama, ("lora_gpt2_conv1d", &["c_attn", "c_fc"])] {
        let case = Case::open(name);
        // R of the order of 1 in every module.
        let config = LoraXsConfig::with_rank(5, TargetSpec::new(ModuleNames::list(targets.iter().copied())));
        let mut adapted = case.base_model();
        adapted.add_adapter("default", config.with_init_std(0.3)).unwrap();
        adapted.eval().unwrap();
        let logits = case.logits(&adapted);
        assert!(difference(&logits, case.expected("base_logits")) > 0.1, "{name}: the adapter must do something");

        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        adapted.save_adapter("default", dirs[0].path()).unwrap();
        let detached = DetachedAdapter::open(dirs[0].path(), &registry).unwrap();
        to_lora(&detached).unwrap().save(dirs[1].path()).unwrap();
        for dir in dirs {
            let mut model = case.base_model();
            model.load_adapter("again", dir.path(), &registry).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_close(name, &case.logits(&model), &logits, 1e-5);
        }
    }
}
