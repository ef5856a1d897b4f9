//! Hot swaps between adapters that PEFT wrote: what is swapped in computes what a fresh load computes, bit for bit.

use crate::fixture::{Case, assert_close, bits};
use candle_core::{Device, Tensor};
use candle_peft::core::checkpoint::{CONFIG_FILE, DEFAULT_ADAPTER, WEIGHTS_FILE};
use candle_peft::lora::LoraConfig;
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::{Error, PeftModel, Registry};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// LoRA adapters on the same modules: ranks 8, 4 and 16 with other alphas, and one with rsLoRA, patterns and dropout.
const LORA: [&str; 4] = ["hotswap/rank_8", "hotswap/rank_4", "hotswap/rank_16", "hotswap/patterned"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn registry() -> Registry {
    candle_peft::registry().unwrap()
}

/// The tiny Llama with these adapters, all of them active.
fn with(adapters: &[(&str, &str)]) -> PeftModel<CausalLm> {
    let mut model = PeftModel::new(load_model(fixture("base_llama"), None, &Device::Cpu).unwrap());
    for (name, dir) in adapters {
        model.load_adapter(name, fixture(dir), &registry()).unwrap();
    }
    model.activate(&adapters.iter().map(|(name, _)| *name).collect::<Vec<_>>()).unwrap();
    model
}

fn only(dir: &str) -> PeftModel<CausalLm> {
    with(&[(DEFAULT_ADAPTER, dir)])
}

fn swap(model: &mut PeftModel<CausalLm>, name: &str, dir: &str) {
    model.hotswap_adapter(name, fixture(dir), &registry()).unwrap_or_else(|e| panic!("{dir}: {e}"));
}

fn logits(model: &PeftModel<CausalLm>) -> Tensor {
    let ids = &tensors(&fixture(LORA[0]), "expected.safetensors")["input_ids"];
    model.base().forward(ids, ForwardOptions::all()).unwrap()
}

fn tensors(dir: &Path, file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap()
}

/// What one adapter would be saved as.
fn saved(model: &PeftModel<CausalLm>, name: &str) -> (serde_json::Value, Vec<(String, Vec<u32>)>) {
    let adapter = model.adapter(name).unwrap();
    let tensors = adapter.params.persisted().map(|(key, tensor)| (key.to_string(), bits(tensor))).collect();
    (serde_json::from_str(&adapter.config.to_json().unwrap()).unwrap(), tensors)
}

#[test]
fn ranks_scalings_and_patterns_change_with_the_swap() {
    for from in LORA {
        for to in LORA {
            let mut model = only(from);
            swap(&mut model, DEFAULT_ADAPTER, to);
            let fresh = only(to);
            assert_eq!(bits(&logits(&model)), bits(&logits(&fresh)), "{from} to {to}");
            assert_eq!(saved(&model, DEFAULT_ADAPTER), saved(&fresh, DEFAULT_ADAPTER), "{from} to {to}");
            let expected = &tensors(&fixture(to), "expected.safetensors")["logits"];
            assert_close(&format!("{from} to {to}, against PEFT"), &logits(&model), expected, 1e-5);
        }
    }
}

#[test]
fn one_model_serves_one_adapter_after_another() {
    let mut model = only("hotswap/rank_8");
    for to in ["hotswap/rank_4", "hotswap/rank_16", "hotswap/patterned", "hotswap/rank_8"] {
        swap(&mut model, DEFAULT_ADAPTER, to);
        assert_eq!(bits(&logits(&model)), bits(&logits(&only(to))), "{to}");
        // What is saved is what was swapped in: PEFT keeps the first config, and its files cannot be loaded then.
        let out = tempfile::tempdir().unwrap();
        model.save_adapter(DEFAULT_ADAPTER, out.path()).unwrap();
        let mut again = PeftModel::new(load_model(fixture("base_llama"), None, &Device::Cpu).unwrap());
        again.load_adapter("again", out.path(), &registry()).unwrap();
        assert_eq!(bits(&logits(&again)), bits(&logits(&model)), "{to}");
    }
    model.disable().unwrap();
    let base = PeftModel::new(load_model(fixture("base_llama"), None, &Device::Cpu).unwrap());
    assert_eq!(bits(&logits(&model)), bits(&logits(&base)));
}

#[test]
fn each_of_two_active_adapters_is_swapped_in_its_place() {
    let other = "lora_embedding";
    for name in ["a", "b"] {
        let pair =
            |dir: &'static str| if name == "a" { [("a", dir), ("b", other)] } else { [("a", other), ("b", dir)] };
        let mut model = with(&pair("hotswap/rank_8"));
        for to in ["hotswap/rank_4", "hotswap/rank_16"] {
            swap(&mut model, name, to);
            assert_eq!(model.active().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(bits(&logits(&model)), bits(&logits(&with(&pair(to)))), "{name}: {to}");
        }
    }
}

#[test]
fn merging_after_a_swap_merges_what_was_swapped_in() {
    let (mut model, mut fresh) = (only("hotswap/rank_8"), only("hotswap/rank_4"));
    model.merge().unwrap();
    assert!(matches!(
        model.hotswap_adapter(DEFAULT_ADAPTER, fixture("hotswap/rank_4"), &registry()),
        Err(Error::At { error, .. }) if matches!(*error, Error::Merged { .. })
    ));
    model.unmerge().unwrap();
    swap(&mut model, DEFAULT_ADAPTER, "hotswap/rank_4");
    model.merge().unwrap();
    fresh.merge().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&fresh)));
}

/// The number of trained numbers, the rank and the presence of projections differ; the modules are the same.
#[test]
fn tinyloras_are_swapped_too() {
    let all = ["tinylora_default", "tinylora_no_projection", "tinylora_no_projection_u3r1"];
    for from in all {
        for to in all.into_iter().filter(|to| *to != from) {
            let mut model = only(from);
            swap(&mut model, DEFAULT_ADAPTER, to);
            assert_eq!(bits(&logits(&model)), bits(&logits(&only(to))), "{from} to {to}");
            let case = Case::open(to);
            assert_close(&format!("{from} to {to}"), &case.logits(&model), case.expected("adapted_logits"), 1e-5);
            let u = case_u(to);
            assert!(model.vars().iter().all(|var| var.elem_count() == u), "{from} to {to}");
        }
    }
}

fn case_u(name: &str) -> usize {
    let config = registry().parse(&fs::read_to_string(fixture(name).join(CONFIG_FILE)).unwrap()).unwrap();
    config.method.downcast_ref::<TinyLoraConfig>().unwrap().u
}

/// A copy of an adapter folder after `change`.
fn damaged(name: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    change(dir.path());
    dir
}

#[test]
fn a_swap_that_fails_leaves_everything_as_it_was() {
    let mut model = with(&[("a", "hotswap/rank_8"), ("b", "hotswap/rank_16")]);
    let before = (bits(&logits(&model)), saved(&model, "a"), saved(&model, "b"));
    let cut = damaged("hotswap/rank_4", |dir| {
        let bytes = fs::read(dir.join(WEIGHTS_FILE)).unwrap();
        fs::write(dir.join(WEIGHTS_FILE), &bytes[..bytes.len() - 4]).unwrap();
    });
    let lacking = damaged("hotswap/rank_4", |dir| {
        let mut tensors = tensors(dir, WEIGHTS_FILE);
        tensors.remove("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight").unwrap();
        candle_core::safetensors::save(&tensors, dir.join(WEIGHTS_FILE)).unwrap();
    });
    let other_rank = damaged("hotswap/rank_4", |dir| {
        let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap().replace("\"r\": 4", "\"r\": 5");
        fs::write(dir.join(CONFIG_FILE), text).unwrap();
    });
    for (dir, says) in [
        (cut.path(), "is not a valid safetensors file"),
        (lacking.path(), "no tensor `base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight`"),
        (other_rank.path(), "has shape [4, 32], but the config and the model ask for [5, 32]"),
        (
            &fixture("lora_rslora_rank_pattern"),
            "it also adapts `model.layers.0.mlp.down_proj`, `model.layers.1.mlp.down_proj`",
        ),
        (&fixture("lora_gpt2_conv1d"), "tensors for modules that the model lacks (`c_attn`)"),
        (&fixture("tinylora_default"), "adapter `a` is a LORA adapter and cannot be swapped for a TINYLORA checkpoint"),
        (&fixture("nothing"), "no such folder"),
    ] {
        let error = model.hotswap_adapter("a", dir, &registry()).unwrap_err().to_string();
        assert!(error.contains(says), "`{says}` is not in: {error}");
        assert!(error.contains(&dir.display().to_string()), "{error}");
        assert_eq!((bits(&logits(&model)), saved(&model, "a"), saved(&model, "b")), before, "{says}");
    }
    assert_eq!(model.active().collect::<Vec<_>>(), ["a", "b"]);
    let rank = model.adapter("a").unwrap().config.method.downcast_ref::<LoraConfig>().unwrap().r;
    assert_eq!(rank, 8);
}
