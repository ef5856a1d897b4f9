//! Adapters that PEFT wrote: what it computed with them is computed here.

use crate::fixture::{Case, DECOMPOSED, DORA, IA3, LORA, TINYLORA, VERA, assert_close, bits, difference};
use candle_core::{DType, Device, Tensor};
use candle_peft::core::checkpoint::{CONFIG_FILE, WEIGHTS_FILE};
use candle_peft::core::{Adaptable, Host, ParamKey, Walk};
use candle_peft::tinylora::TinyLoraConfig;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The cases of methods of which PEFT tells the deltas.
fn with_deltas() -> impl Iterator<Item = Case> {
    TINYLORA.into_iter().chain(LORA).chain(DORA).chain(DECOMPOSED).chain(VERA).map(Case::open)
}

fn all() -> impl Iterator<Item = Case> {
    with_deltas().chain(IA3.map(Case::open))
}

#[test]
fn base_adapted_and_merged_logits_are_those_of_peft() {
    for case in all() {
        let (name, limit) = (case.dir.display().to_string(), case.tolerance());
        let mut model = case.adapted();
        model.disable().unwrap();
        assert_close(&format!("{name}: base"), &case.logits(&model), case.expected("base_logits"), limit);
        model.enable().unwrap();
        let adapted = case.logits(&model);
        assert_close(&format!("{name}: adapted"), &adapted, case.expected("adapted_logits"), limit);
        model.merge().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_close(&format!("{name}: merged"), &case.logits(&model), case.expected("merged_logits"), limit);
        model.unmerge().unwrap();
        assert_eq!(bits(&case.logits(&model)), bits(&adapted), "{name}: unmerging is not exact");
    }
}

#[test]
fn loss_and_every_gradient_are_those_of_peft() {
    for case in all() {
        let name = case.dir.display().to_string();
        let mut model = case.adapted();
        model.train().unwrap();
        let loss = case.loss(&case.logits(&model));
        let (loss_limit, gradient_limit) = match (case.is_16_bit(), case.is_decomposed()) {
            (true, _) => (0.02, case.tolerance()),
            (_, true) => (5e-6, 1e-4),
            _ => (1e-6, 1e-4),
        };
        assert_close(&format!("{name}: loss"), &loss, case.expected("loss"), loss_limit);
        let grads = loss.backward().unwrap();
        model.audit_gradients(&grads).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected: BTreeMap<&str, &Tensor> = case.expected_under("grad.").into_iter().collect();
        let trainable = model.trainable();
        let names: BTreeSet<&str> = trainable.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, expected.keys().copied().collect(), "{name}: trainables");
        for (key, var) in &trainable {
            let want = expected[key.as_str()];
            let largest =
                want.to_dtype(DType::F32).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let relative = difference(grads.get(var).unwrap(), want) / largest;
            assert!(relative <= gradient_limit, "{name}: gradient of {key} is {relative} off");
        }
    }
}

#[test]
fn deltas_are_those_of_peft() {
    for case in with_deltas() {
        let model = case.adapted();
        let deltas = case.expected_under("delta.");
        assert!(!deltas.is_empty());
        for (path, want) in deltas {
            // PEFT's delta of DoRA leaves the magnitude out.
            let want = if case.is_dora() { &case.change_by_merging(path) } else { want };
            let delta = model.delta_weight("default", path).unwrap();
            assert_close(&format!("{}: {path}", case.dir.display()), &delta, want, case.delta_tolerance());
        }
    }
}

#[test]
fn merged_weights_and_biases_are_those_of_peft() {
    for case in IA3.map(Case::open) {
        let mut model = case.adapted();
        model.merge().unwrap();
        let mut merged = BTreeMap::new();
        let mut keep = |path: &str, host: &dyn Host| {
            merged.insert(format!("merged_weight.{path}"), host.base().stored()?.clone());
            merged.extend(host.bias().map(|bias| (format!("merged_bias.{path}"), bias.clone())));
            Ok(())
        };
        model.base().visit(&mut Walk::new(&mut keep)).unwrap();
        let named =
            |what: &'static str| case.expected_under(what).into_iter().map(move |(at, t)| (format!("{what}{at}"), t));
        assert!(named("merged_weight.").next().is_some());
        assert_eq!(named("merged_bias.").next().is_some(), case.base.ends_with("base_gpt2"));
        for (name, want) in named("merged_weight.").chain(named("merged_bias.")) {
            // One rounding of numbers below 0.6: to a bf16 or to its neighbour, where the sum meets PEFT's product at a tie.
            let limit = if case.is_16_bit() { 2f32.powi(-9) } else { 1e-7 };
            assert_close(&format!("{}: {name}", case.dir.display()), &merged[&name], want, limit);
        }
    }
}

#[test]
fn projections_left_out_of_the_file_are_drawn_bit_for_bit() {
    for name in ["tinylora_no_projection", "tinylora_no_projection_u3r1"] {
        let case = Case::open(name);
        let model = case.adapted();
        let projections = case.expected_under("P.");
        assert!(!projections.is_empty());
        for (path, want) in projections {
            let key = ParamKey::site(path, "tinylora_P");
            let drawn = model.adapter("default").unwrap().params.tensor(&key).unwrap().clone();
            assert_eq!(bits(&drawn), bits(want), "{name}: {path}");
        }
    }
}

#[test]
fn shared_projections_are_drawn_bit_for_bit() {
    let mut drawn = 0;
    for name in VERA {
        let case = Case::open(name);
        let text = fs::read_to_string(case.dir.join(CONFIG_FILE)).unwrap();
        let config = candle_peft::registry().unwrap().parse(&text).unwrap();
        let file = candle_core::safetensors::load(case.dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
        let mut fresh = case.base_model();
        fresh.add_adapter("default", config).unwrap();
        let keys = |keys: &mut dyn Iterator<Item = String>| keys.collect::<BTreeSet<_>>();
        let ours = keys(&mut fresh.adapter("default").unwrap().params.persisted().map(|(key, _)| key.to_string()));
        assert_eq!(ours, keys(&mut file.keys().cloned()), "{name}");
        // What a fresh adapter draws, and what one draws that was read from a file without.
        for model in [fresh, case.adapted()] {
            for projection in ["vera_A", "vera_B"] {
                let key = ParamKey::shared(projection);
                let want = file.get(&key.to_string());
                drawn += usize::from(want.is_none());
                let want = want.unwrap_or_else(|| case.expected(&format!("projection.{projection}")));
                let ours = model.adapter("default").unwrap().params.tensor(&key).unwrap().clone();
                assert_eq!(bits(&ours), bits(want), "{name}: {projection}");
            }
        }
    }
    assert_eq!(drawn, 8, "two cases leave their projections out");
}

#[test]
fn a_fresh_adapter_draws_the_projections_and_makes_the_groups_of_peft() {
    // Freshly made, not read: config in, names, shapes, P and B A out.
    for name in TINYLORA.into_iter().filter(|n| !n.contains("two_adapters/")) {
        let case = Case::open(name);
        let text = fs::read_to_string(case.dir.join(CONFIG_FILE)).unwrap();
        let config = candle_peft::registry().unwrap().parse(&text).unwrap();
        let saves_projection = config.method.downcast_ref::<TinyLoraConfig>().unwrap().save_projection;
        let mut model = case.base_model();
        model.add_adapter("default", config).unwrap();
        let params = &model.adapter("default").unwrap().params;
        let file = candle_core::safetensors::load(case.dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
        let ours: BTreeMap<String, &Tensor> = params.persisted().map(|(k, t)| (k.to_string(), t)).collect();
        assert_eq!(ours.keys().collect::<BTreeSet<_>>(), file.keys().collect(), "{name}");
        let mut seen = 0;
        for (key, want) in &file {
            assert_eq!(ours[key].shape(), want.shape(), "{name}: {key}");
            if key.ends_with("tinylora_P") {
                assert_eq!(bits(ours[key]), bits(want), "{name}: {key}");
                seen += 1;
            }
            if let Some(stem) = key.strip_suffix("tinylora_A") {
                let b = format!("{stem}tinylora_B");
                let product = |a: &Tensor, b: &Tensor| b.matmul(a).unwrap();
                // Singular vectors in f32 are determined up to the rounding times the largest singular value over the gap to the
                // next; the script that made the fixtures holds PEFT's own to the same limit.
                let limit = if case.is_16_bit() { 0.05 } else { 1e-4 };
                assert_close(
                    &format!("{name}: {key}"),
                    &product(ours[key], ours[&b]),
                    &product(want, &file[&b]),
                    limit,
                );
            }
        }
        assert_eq!(seen > 0, saves_projection, "{name}");
    }
}

#[test]
fn a_checkpoint_written_again_is_the_same() {
    let rewritten = std::env::var_os("CANDLE_PEFT_REWRITTEN").map(std::path::PathBuf::from);
    for case in all() {
        let scratch = tempfile::tempdir().unwrap();
        let name = case.dir.strip_prefix(case.base.parent().unwrap()).unwrap();
        let out = rewritten.as_deref().unwrap_or(scratch.path()).join(name);
        case.adapted().save_adapter("default", &out).unwrap();
        let read = |dir: &Path| candle_core::safetensors::load(dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
        let (before, after) = (read(&case.dir), read(&out));
        assert_eq!(before.keys().collect::<BTreeSet<_>>(), after.keys().collect(), "{}", name.display());
        for (key, tensor) in &before {
            let again = &after[key];
            assert_eq!((again.dtype(), again.dims()), (tensor.dtype(), tensor.dims()), "{}: {key}", name.display());
            assert_eq!(bits(again), bits(tensor), "{}: {key}", name.display());
        }
        assert_eq!(config(&case.dir), config(&out), "{}", name.display());
        let bytes = fs::read(out.join(WEIGHTS_FILE)).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    }
}

/// A config with its sets sorted: PEFT writes them in arbitrary order.
fn config(dir: &Path) -> Value {
    let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    // Files are written for inference, whatever they were read as; PEFT's conversion is the only one to say otherwise.
    config["inference_mode"] = true.into();
    for set in ["target_modules", "exclude_modules", "feedforward_modules"] {
        if let Some(Value::Array(names)) = config.get_mut(set) {
            names.sort_by_key(|n| n.as_str().unwrap().to_owned());
        }
    }
    config
}
