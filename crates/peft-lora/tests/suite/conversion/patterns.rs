//! Modules of different ranks in `rank_pattern` and `alpha_pattern`.

use super::support::{Tensors, delta, distance, load, random};
use candle_core::{DType, Tensor};
use peft_core::{ModuleNames, PeftModel, Registry, TargetSpec};
use peft_lora::{ConvertedLora, LoraConfig, Rank, to_lora, to_lora_with};
use peft_testkit::skeleton::Skeleton;
use std::collections::BTreeMap;

fn skeleton(modules: &[(&str, usize)]) -> Skeleton {
    modules.iter().fold(Skeleton::new(), |model, (path, _)| model.linear(path).unwrap())
}

/// A LoRA of rank 3 whose products have these ranks, converted by what there is of them.
fn convert(modules: &[(&str, usize)]) -> (PeftModel<Skeleton>, ConvertedLora) {
    let mut tensors = Tensors::new();
    for (seed, (path, rank)) in (1..).zip(modules) {
        let keep = Tensor::eye(3, DType::F64, &candle_core::Device::Cpu).unwrap().narrow(0, 0, *rank).unwrap();
        let a = keep.t().unwrap().matmul(&keep).unwrap().matmul(&random((3, 3), seed)).unwrap();
        for (name, tensor) in [("lora_A.weight", a), ("lora_B.weight", random((3, 3), seed + 100))] {
            tensors.insert(format!("base_model.model.{path}.{name}"), tensor.to_dtype(DType::F32).unwrap());
        }
    }
    let config = LoraConfig::with_rank(3, TargetSpec::new(ModuleNames::Pattern(".*".into())));
    let mut model = PeftModel::new(skeleton(modules));
    model.add_from_source("default", config, &tensors).unwrap();
    let lora = to_lora_with(&model.detached("default").unwrap(), Rank::Threshold(1.0)).unwrap();
    (model, lora)
}

/// Checks that the files, read again, give each module its rank and the scaling 1; returns the keys of the patterns.
fn assert_read_back(modules: &[(&str, usize)]) -> BTreeMap<String, usize> {
    let (model, mut lora) = convert(modules);
    let found: Vec<(&str, usize)> = lora.modules.iter().map(|m| (m.path.as_str(), m.rank)).collect();
    assert_eq!(found, modules);
    let mut registry = Registry::new();
    registry.register::<LoraConfig>().unwrap();
    lora.config = registry.parse(&lora.config.to_json().unwrap()).unwrap();
    // A module read with another rank than its tensors have would not load.
    let loaded = load(skeleton(modules), &lora);
    for (path, _) in modules {
        let off = distance(&delta(&model, path), &delta(&loaded, path));
        assert!(off < 1e-6, "{path} is {off} off");
    }
    let config = lora.config.method.downcast_ref::<LoraConfig>().unwrap();
    assert_eq!(config.lora_alpha, config.r as f64);
    let alphas: BTreeMap<String, usize> =
        config.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), *alpha as usize)).collect();
    let ranks: BTreeMap<String, usize> = config.rank_pattern.iter().map(|(key, rank)| (key.clone(), *rank)).collect();
    assert_eq!(ranks, alphas);
    ranks
}

#[test]
fn full_paths_are_written_as_peft_writes_them() {
    let modules = [
        ("model.layers.1.mlp.up_proj", 2),
        ("model.layers.1.mlp.down_proj", 1),
        ("model.layers.2.mlp.up_proj", 3),
        ("model.layers.11.mlp.up_proj", 3),
        ("model.layers.21.mlp.up_proj", 1),
        ("lm_head", 2),
        ("x.model.layers.2.mlp.down_proj", 3),
    ];
    let expected = [
        ("lm_head", 2),
        ("model.layers.1.mlp.down_proj", 1),
        ("model.layers.1.mlp.up_proj", 2),
        ("model.layers.21.mlp.up_proj", 1),
    ];
    let keys = assert_read_back(&modules);
    assert_eq!(keys.iter().map(|(key, rank)| (key.as_str(), *rank)).collect::<Vec<_>>(), expected);
}

#[test]
fn a_path_that_takes_another_module_is_bound_to_the_start() {
    // As patterns, `lm_head` takes `model.lm_head` and `h.1.up` takes both `h.1.up` and `h.1xup`.
    let modules =
        [("lm_head", 1), ("model.lm_head", 3), ("h.1.up", 2), ("h.1xup", 3), ("a.h.11.up", 3), ("a.h.1.up", 1)];
    let keys = assert_read_back(&modules);
    let expected = [(r"^h\.1\.up", 2), (r"^lm_head", 1), ("a.h.1.up", 1)];
    assert_eq!(keys.iter().map(|(key, rank)| (key.as_str(), *rank)).collect::<Vec<_>>(), expected);
}

#[test]
fn characters_with_a_meaning_in_patterns_are_escaped() {
    let modules = [("gate(0)", 1), ("gate+up", 2), ("blöck.up", 1), ("a$b", 3), ("c[0].d", 3), ("e-f", 2), ("g", 3)];
    let keys = assert_read_back(&modules);
    assert_eq!(keys.keys().collect::<Vec<_>>(), [r"^blöck\.up", r"^gate\(0\)", r"^gate\+up", "e-f"]);
}

#[test]
fn one_rank_for_all_needs_no_patterns() {
    let (model, lora) = convert(&[("layers.0.up", 2), ("layers.1.up", 2)]);
    let patterns = |lora: &ConvertedLora| {
        let config = lora.config.method.downcast_ref::<LoraConfig>().unwrap();
        (config.r, config.rank_pattern.len(), config.alpha_pattern.len())
    };
    assert_eq!(patterns(&lora), (2, 0, 0));
    assert_eq!(patterns(&to_lora(&model.detached("default").unwrap()).unwrap()), (3, 0, 0));
}
