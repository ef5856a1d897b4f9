//! Adapters that PEFT combined by `add_weighted_adapter`, combined here.

use crate::fixture::{assert_close, bits, difference};
use candle_core::{Device, Tensor};
use candle_peft::core::checkpoint::{CONFIG_FILE, DetachedAdapter, WEIGHTS_FILE};
use candle_peft::lora::{Combination, ConvertedLora, WeightedAdapter, add_weighted_adapter, combine};
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::{PeftModel, Registry};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// What PEFT combined.
struct Case {
    name: &'static str,
    dir: PathBuf,
    base: PathBuf,
    adapters: Vec<String>,
    weights: Vec<f64>,
    combination: Combination,
    expected: HashMap<String, Tensor>,
}

const CASES: [&str; 12] = [
    "linear",
    "linear_conv1d",
    "linear_embedding",
    "cat",
    "cat_regex",
    "cat_conv1d",
    "cat_embedding",
    "svd",
    "svd_rank",
    "svd_clamp",
    "svd_conv1d",
    "svd_embedding",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn registry() -> Registry {
    candle_peft::registry().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

impl Case {
    fn open(name: &'static str) -> Self {
        let dir = fixtures().join("weighted").join(name);
        let case = json(&dir.join("case.json"));
        let combination = match case["combination_type"].as_str().unwrap() {
            "linear" => Combination::Linear,
            "cat" => Combination::Cat,
            "svd" => Combination::Svd {
                rank: case["svd_rank"].as_u64().map(|rank| rank as usize),
                clamp: case["svd_clamp"].as_f64(),
            },
            other => panic!("{other}"),
        };
        let list = |key: &str| case[key].as_array().unwrap().iter();
        Self {
            name,
            base: fixtures().join(case["base"].as_str().unwrap()),
            adapters: list("adapters").map(|name| name.as_str().unwrap().to_owned()).collect(),
            weights: list("weights").map(|weight| weight.as_f64().unwrap()).collect(),
            combination,
            expected: candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap(),
            dir,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        CASES.into_iter().map(Self::open)
    }

    fn combined(&self) -> ConvertedLora {
        let open = |name: &String| DetachedAdapter::open(adapter(name), &registry()).unwrap();
        let detached: Vec<DetachedAdapter> = self.adapters.iter().map(open).collect();
        let weighted: Vec<_> = (self.adapters.iter().zip(&detached).zip(&self.weights))
            .map(|((name, adapter), weight)| WeightedAdapter::new(name, adapter, *weight))
            .collect();
        combine(&weighted, self.combination).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    fn base_model(&self) -> PeftModel<CausalLm> {
        PeftModel::new(load_model(&self.base, None, &Device::Cpu).unwrap())
    }

    /// The base model with the adapters of the case and the one made of them.
    fn model(&self) -> PeftModel<CausalLm> {
        let mut model = self.base_model();
        for name in &self.adapters {
            model.load_adapter(name, adapter(name), &registry()).unwrap();
        }
        let weighted: Vec<(&str, f64)> =
            self.adapters.iter().map(String::as_str).zip(self.weights.iter().copied()).collect();
        add_weighted_adapter(&mut model, "combined", &weighted, self.combination).unwrap();
        model
    }

    fn logits(&self, model: &PeftModel<CausalLm>) -> Tensor {
        model.base().forward(&self.expected["input_ids"], ForwardOptions::all()).unwrap()
    }
}

fn adapter(name: &str) -> PathBuf {
    fixtures().join("weighted/adapters").join(name)
}

#[test]
fn every_case_is_tested() {
    let folders = fs::read_dir(fixtures().join("weighted")).unwrap();
    let found: BTreeSet<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let tested = CASES.into_iter().chain(["adapters"]).map(str::to_owned).collect();
    assert_eq!(found, tested);
}

#[test]
fn the_config_is_the_one_that_peft_writes() {
    for case in Case::all() {
        let mut configs = [
            json(&case.dir.join(CONFIG_FILE)),
            serde_json::from_str(&case.combined().config.to_json().unwrap()).unwrap(),
        ];
        for config in &mut configs {
            // PEFT keeps them as a set.
            if let Some(names) = config["target_modules"].as_array_mut() {
                names.sort_by_key(Value::to_string);
            }
        }
        assert_eq!(configs[0], configs[1], "{}", case.name);
    }
}

#[test]
fn the_tensors_are_those_that_peft_writes() {
    for case in Case::all() {
        let combined = case.combined();
        let file = candle_core::safetensors::load(case.dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
        let names: BTreeSet<&String> = file.keys().collect();
        assert_eq!(combined.tensors.keys().collect::<BTreeSet<_>>(), names, "{}", case.name);
        for (key, want) in &file {
            let found = &combined.tensors[key];
            assert_eq!((found.dims(), found.dtype()), (want.dims(), want.dtype()), "{}: {key}", case.name);
            // Signs of singular vectors are free; the script fixed them where it had to.
            if !matches!(case.combination, Combination::Svd { clamp: None, .. }) || key.ends_with("base_layer.weight") {
                let limit = if case.name == "svd_clamp" { 1e-5 } else { 1e-6 };
                assert_close(&format!("{}: {key}", case.name), found, want, limit);
            }
        }
    }
}

#[test]
fn deltas_and_logits_are_those_of_peft() {
    for case in Case::all() {
        let combined = case.combined();
        let mut model = case.base_model();
        model.add_from_source("combined", combined.config, &combined.tensors).unwrap();
        assert_close(case.name, &case.logits(&model), &case.expected["logits"], 1e-5);
        let mut seen = 0;
        for (path, want) in case.expected.iter().filter_map(|(key, t)| Some((key.strip_prefix("delta.")?, t))) {
            let delta = model.delta_weight("combined", path).unwrap();
            assert_close(&format!("{}: {path}", case.name), &delta, want, 2e-6);
            seen += 1;
        }
        assert_eq!(seen, model.adapter("combined").unwrap().sites.len(), "{}", case.name);
        let mut plain = case.base_model();
        plain.load_adapter("first", adapter(&case.adapters[0]), &registry()).unwrap();
        assert!(difference(&case.logits(&plain), &case.expected["logits"]) > 1e-2, "{}", case.name);
    }
}

#[test]
fn attached_adapters_give_what_their_files_give() {
    for case in Case::all() {
        let (model, combined) = (case.model(), case.combined());
        assert_close(case.name, &case.logits(&model), &case.expected["logits"], 1e-5);
        let attached = model.adapter("combined").unwrap();
        assert_eq!(attached.config.to_json().unwrap(), combined.config.to_json().unwrap(), "{}", case.name);
        assert_eq!(attached.params.persisted().count(), combined.tensors.len(), "{}", case.name);
        for (key, tensor) in attached.params.persisted() {
            assert_eq!(bits(tensor), bits(&combined.tensors[&key.to_string()]), "{}: {key}", case.name);
        }
        assert_eq!(model.active().collect::<Vec<_>>(), ["combined"]);
        let names: Vec<&str> = model.adapters().iter().map(|a| &*a.name).collect();
        assert_eq!(names[..case.adapters.len()], case.adapters);
        assert_eq!(names.last(), Some(&"combined"));
    }
}

#[test]
fn the_written_folder_loads() {
    for case in Case::all() {
        let out = tempfile::tempdir().unwrap();
        case.combined().save(out.path()).unwrap();
        let mut model = case.base_model();
        model.load_adapter("combined", out.path(), &registry()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_close(case.name, &case.logits(&model), &case.expected["logits"], 1e-5);
    }
}
