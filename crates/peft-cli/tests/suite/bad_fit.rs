//! Adapters, bases and targets that do not fit each other.

use crate::support::{METHOD, Sizes, Workplace, every_reader_refuses, fixture, run, write_llama};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

#[test]
fn a_base_with_other_layers_or_shapes_is_refused() {
    let place = Workplace::new();
    let adapter = place.at("adapter");
    let base = write_llama(&place.at("base"), Sizes::default());
    let method = "--method tinylora --set u=4 --set target_modules=q_proj,up_proj";
    run(&format!("init --base {base} {method} --out {adapter}"), &[]).expect_success();
    let other = |name: &str, sizes: Sizes| write_llama(&place.at(name), sizes);
    let fewer = other("fewer", Sizes { layers: 1, ..Sizes::default() });
    every_reader_refuses(&place, &fewer, &adapter, &[&adapter, "that the model lacks (`model.layers.1.mlp.up_proj`"]);
    let more = other("more", Sizes { layers: 3, ..Sizes::default() });
    every_reader_refuses(&place, &more, &adapter, &[&adapter, "tinylora_"]);
    let wider = other("wider", Sizes { hidden: 64, ..Sizes::default() });
    every_reader_refuses(&place, &wider, &adapter, &[&adapter, "layers.0", "shape"]);
    let narrower = other("narrower", Sizes { intermediate: 48, ..Sizes::default() });
    every_reader_refuses(&place, &narrower, &adapter, &[&adapter, "up_proj", "shape"]);
    every_reader_refuses(&place, &fixture("base_gpt2"), &adapter, &[&adapter, "q_proj", "c_attn"]);
}

#[test]
fn a_base_whose_config_contradicts_its_weights_is_refused() {
    let place = Workplace::new();
    let base = write_llama(&place.at("base"), Sizes::default());
    let path = format!("{base}/config.json");
    let config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value, says) in [
        ("num_hidden_layers", 3.into(), "the config has 3 layers but the weights have 2"),
        ("num_hidden_layers", 1.into(), "the config has 1 layers but the weights have 2"),
        ("vocab_size", 65.into(), "embed_tokens"),
        ("intermediate_size", 65.into(), "mlp"),
        ("model_type", "mamba".into(), "`model_type` is `mamba`; supported: gpt2, llama"),
        ("vocab_size", Value::Null, "`vocab_size`"),
    ] {
        let mut changed = config.clone();
        changed.insert(field.to_owned(), value);
        std::fs::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        let words = format!("init --base {base} --method tinylora --out {}", place.at("out"));
        run(&words, &[]).expect_error(1, &[&base, says]);
        assert!(!place.exists("out"));
    }
}

#[test]
fn targets_that_match_nothing_list_near_names() {
    let place = Workplace::new();
    let (base, out) = (fixture("base_llama"), place.at("out"));
    for (target, says) in [
        ("q_prj", &["`q_prj`", "did you mean `q_proj`", "gate_proj"][..]),
        ("q_proj,v_prj", &["`v_prj`", "v_proj"]),
        (".*wte.*", &[".*wte.*", "embed_tokens"]),
        ("norm", &["normalisation", "model.norm"]),
        (".*layernorm", &["normalisation", "model.layers.0.input_layernorm"]),
    ] {
        let words = format!("init --base {base} --method tinylora --set target_modules={target} --out {out}");
        run(&words, &[]).expect_error(1, says);
        assert!(!place.exists("out"));
    }
    let words = format!("init --base {base} {METHOD} --set layers_to_transform=7 --out {out}");
    run(&words, &[]).expect_error(1, &["layers [7]"]);
}

#[test]
fn safe_merging_refuses_nan() {
    let place = Workplace::new();
    let (base, merged) = (fixture("base_llama"), place.at("merged"));
    for poison in [f32::NAN, f32::INFINITY] {
        let adapter = place.changed_adapter("adapter", |files| {
            let poison = Tensor::full(poison, 13, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
            files.tensors.insert("base_model.tinylora_v.1".into(), poison);
        });
        let words = format!("merge --base {base} --adapter {adapter} --out {merged}");
        let says = ["`default`", "NaN", "model.layers.0.self_attn.v_proj", "nothing was merged"];
        run(&format!("{words} --safe"), &[]).expect_error(1, &says);
        assert!(!place.exists("merged"));
    }
    let adapter = place.at("adapter");
    run(&format!("merge --base {base} --adapter {adapter} --out {merged}"), &[]).expect_success();
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let place = Workplace::new();
    let (base, data, out) = (fixture("base_llama"), place.at("data.jsonl"), place.at("out"));
    let adapter = place.changed_adapter("adapter", |files| {
        let poison = Tensor::full(f32::NAN, 13, &Device::Cpu).unwrap();
        files.tensors.insert("base_model.tinylora_v.1".into(), poison);
    });
    let words =
        format!("train --base {base} --adapter {adapter} --data {data} --out {out} --steps 5 --learning-rate 0.1");
    run(&words, &[]).expect_error(1, &["the loss at step 1 is NaN", "no earlier state"]);
    assert!(!place.exists("out"));
    run(&format!("eval --base {base} --adapter {adapter} --data {data}"), &[]).expect_error(1, &["line 1", "NaN"]);

    // A rate that spoils the parameters in the second step.
    let rate = "--steps 8 --learning-rate 3e38 --optimizer sgd --warmup 3";
    let words = format!("train --base {base} {METHOD} --data {data} --out {out} {rate}");
    run(&words, &[]).expect_error(1, &["the loss at step 3 is NaN", "the last good state is in", &out]);
    let report = run(&format!("eval --base {base} --adapter {out} --data {data} --json"), &[]).expect_success().json();
    assert!(report["loss"].as_f64().unwrap().is_finite());
}
