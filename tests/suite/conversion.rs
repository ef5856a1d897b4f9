//! Adapters as ordinary LoRAs: exact ones, and those that PEFT's `convert_to_lora` makes of the same files.

use crate::fixture::{Case, DECOMPOSED, DORA, LORA, TINYLORA, VERA, assert_close, bits, difference};
use candle_core::{Device, Tensor};
use candle_peft::core::checkpoint::{DetachedAdapter, WEIGHTS_FILE};
use candle_peft::lora::{LoraConfig, Rank, to_lora, to_lora_with};
use candle_peft::lora_xs::LoraXsConfig;
use candle_peft::{ModuleNames, TargetSpec};
use std::collections::BTreeMap;

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
    for (name, why) in DORA.map(|name| (name, "not a product")).into_iter().chain([("lora_bias_conv1d", "bias")]) {
        let error = to_lora(&DetachedAdapter::open(Case::open(name).dir, &registry).unwrap()).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[test]
fn dora_and_ia3_become_loras_by_decomposing_what_they_change() {
    for name in DORA.into_iter().filter(|name| *name != "lora_dora_conv1d").chain(["ia3_default", "ia3_regex"]) {
        let case = Case::open(name);
        let adapter = case.adapted().detached("default").unwrap();
        let whole = to_lora_with(&adapter, Rank::Threshold(1.0)).unwrap();
        // All the energy, up to the rounding of a sum of squares in f32: the root of 1.2e-7.
        assert!(whole.modules.iter().all(|module| module.error < 3.5e-4), "{name}: {:?}", whole.modules);
        let mut model = case.base_model();
        model.add_from_source("whole", whole.config, &whole.tensors).unwrap();
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), 2e-3);
        let part = to_lora_with(&adapter, Rank::Fixed(4)).unwrap();
        assert!(part.modules.iter().all(|module| module.rank <= 4 && module.error < 1.0), "{name}: {:?}", part.modules);
        assert!(part.modules.iter().any(|module| module.error > 1e-3), "{name}: {:?}", part.modules);
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
fn a_chosen_rank_gives_what_peft_makes_of_the_same_adapter() {
    let registry = candle_peft::registry().unwrap();
    for (name, rank) in [("converted_lora", Rank::Fixed(2)), ("converted_lora_threshold", Rank::Threshold(0.9))] {
        let case = Case::open(name);
        let source = DetachedAdapter::open(case.dir.join("source"), &registry).unwrap();
        let lora = to_lora_with(&source, rank).unwrap();
        let theirs = candle_core::safetensors::load(case.dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
        let shapes = |tensors: &mut dyn Iterator<Item = (&String, &Tensor)>| -> BTreeMap<String, Vec<usize>> {
            tensors.map(|(key, tensor)| (key.clone(), tensor.dims().to_vec())).collect()
        };
        assert_eq!(shapes(&mut lora.tensors.iter()), shapes(&mut theirs.iter()), "{name}");

        let dir = tempfile::tempdir().unwrap();
        lora.save(dir.path()).unwrap();
        let mut model = case.base_model();
        model.load_adapter("lora", dir.path(), &registry).unwrap();
        let deltas = case.expected_under("delta.");
        assert_eq!(deltas.len(), lora.modules.len(), "{name}");
        for (path, want) in deltas {
            assert_close(&format!("{name}: {path}"), &model.delta_weight("lora", path).unwrap(), want, 1e-6);
        }
        assert_close(name, &case.logits(&model), case.expected("adapted_logits"), 1e-5);
        // Rank 3 was cut down, so something is lost in every module, and the report says how much.
        assert!(lora.modules.iter().all(|m| m.error > 1e-3 && m.error < 0.5), "{name}: {:?}", lora.modules);
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
fn without_a_rank_nothing_of_the_source_is_lost() {
    let registry = candle_peft::registry().unwrap();
    for name in ["converted_lora", "converted_lora_threshold"] {
        let case = Case::open(name);
        let source = DetachedAdapter::open(case.dir.join("source"), &registry).unwrap();
        for lora in [to_lora(&source).unwrap(), to_lora_with(&source, Rank::Threshold(1.0)).unwrap()] {
            assert!(lora.modules.iter().all(|m| m.rank == 3 && m.error == 0.0), "{name}: {:?}", lora.modules);
            let mut model = case.base_model();
            model.add_from_source("lora", lora.config, &lora.tensors).unwrap();
            assert_close(name, &case.logits(&model), case.expected("source_logits"), 1e-5);
        }
    }
}

#[test]
fn embeddings_and_conv1d_are_off_by_what_the_report_says() {
    let registry = candle_peft::registry().unwrap();
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    for name in ["tinylora_embedding", "gpt2_conv1d"] {
        let case = Case::open(name);
        let source = DetachedAdapter::open(&case.dir, &registry).unwrap();
        let lora = to_lora_with(&source, Rank::Fixed(1)).unwrap();
        let mut model = case.base_model();
        model.add_from_source("lora", lora.config, &lora.tensors).unwrap();
        for module in &lora.modules {
            let theirs = case.expected(&format!("delta.{}", module.path));
            let lost = (theirs - model.delta_weight("lora", &module.path).unwrap()).unwrap();
            let error = norm(&lost) / norm(theirs);
            // The rank was 2.
            assert!(module.rank == 1 && error > 1e-3 && error < 0.8, "{name}: {module:?} is {error} off");
            assert!((module.error as f32 - error).abs() < 1e-5, "{name}: {module:?} is {error} off");
        }
        let adapted = case.logits(&model);
        model.merge().unwrap();
        assert_close(name, &case.logits(&model), &adapted, 1e-5);
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
