//! Compact checkpoints and the cache of factors on the command line.

use crate::support::{METHOD, Outcome, Sizes, Workplace, command, fixture, run, write_llama};
use std::fs;
use std::path::Path;

/// Runs the binary with another cache and number of threads.
fn run_with(words: &str, cache: &str, threads: &str) -> Outcome {
    let mut command = command();
    command.env("CANDLE_PEFT_CACHE", cache).env("RAYON_NUM_THREADS", threads);
    command.args(words.split_whitespace()).output().unwrap().into()
}

fn names(dir: &str) -> Vec<String> {
    crate::support::names(Path::new(dir))
}

fn same(a: &str, b: &str) {
    assert_eq!(names(a), names(b));
    for name in names(a) {
        let read = |dir: &str| fs::read(Path::new(dir).join(&name)).unwrap();
        assert!(read(a) == read(b), "{name} differs");
    }
}

#[test]
fn init_and_convert_go_both_ways() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    let [full, small, back, again] = ["full", "small", "back", "again"].map(|name| place.at(name));
    run(&format!("init --base {base} {METHOD} --out {full}"), &[]).expect_success();
    run(&format!("init --base {base} {METHOD} --compact --out {small}"), &[]).expect_success();
    assert_eq!(names(&small), ["adapter_compact.safetensors", "adapter_config.json"]);
    let convert =
        |from: &str, to: &str, out: &str| run(&format!("convert --adapter {from} --to {to} --out {out}"), &[]);
    // The base is the one that the adapter names.
    let text = convert(&small, "peft", &back).expect_success().stdout;
    assert!(text.starts_with("compact checkpoint as PEFT's layout: 4 modules, 52 parameters"), "{text}");
    same(&full, &back);
    convert(&full, "compact", &again).expect_success();
    same(&small, &again);
    convert(&small, "lora", &place.at("lora")).expect_success();
    assert!(place.exists("lora"));
    let nowhere = place.at("nowhere");
    convert(&small, "compact", &nowhere).expect_error(1, &[&small, "compact checkpoint already"]);
    convert(&full, "peft", &nowhere).expect_error(1, &[&full, "already"]);
    convert(&small, "peft", &small).expect_error(1, &["same folder"]);
    convert(&small, "peft --rank 1", &nowhere).expect_error(2, &["--rank"]);
    assert!(!place.exists("nowhere"));
}

#[test]
fn inspect_tells_what_it_is() {
    let place = Workplace::new();
    let (base, small) = (fixture("base_llama"), place.at("small"));
    run(&format!("init --base {base} {METHOD} --compact --out {small}"), &[]).expect_success();
    let report = run(&format!("inspect {small} --json"), &[]).expect_success().json();
    assert_eq!((&report["compact"], &report["modules"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(report["unknown_fields"], serde_json::json!([]));
    let report = run(&format!("inspect {small} --base {base} --json"), &[]).expect_success().json();
    assert_eq!((report["modules"].as_array().unwrap().len(), &report["trainable_parameters"]), (4, &52.into()));
    assert!(run(&format!("inspect {small}"), &[]).expect_success().stdout.contains("\nlayout      compact"));
}

#[test]
fn another_base_is_refused() {
    let place = Workplace::new();
    let sizes = Sizes::default();
    let [base, other, small] = ["base", "other", "small"].map(|name| place.at(name));
    write_llama(&base, sizes);
    write_llama(&other, sizes);
    let file = Path::new(&other).join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    let weight = tensors.get_mut("model.layers.1.self_attn.q_proj.weight").unwrap();
    *weight = (&*weight * 1.0001).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    run(&format!("init --base {base} {METHOD} --compact --out {small}"), &[]).expect_success();
    let data = place.at("data.jsonl");
    run(&format!("eval --base {base} --adapter {small} --data {data}"), &[]).expect_success();
    let says = [base.as_str(), "`model.layers.1.self_attn.q_proj` is the first that differs"];
    run(&format!("eval --base {other} --adapter {small} --data {data}"), &[]).expect_error(1, &says);
    run(&format!("inspect {small} --base {other}"), &[]).expect_error(1, &says);
}

#[test]
fn train_saves_and_resumes_compact_checkpoints() {
    let place = Workplace::new();
    let (base, data) = (fixture("base_llama"), place.at("data.jsonl"));
    let train = |out: &str, more: &str| {
        let words = format!("train --base {base} {METHOD} --data {data} --learning-rate 0.1 --out {out} {more}");
        run(&words, &[]).expect_success();
    };
    let [full, whole, parts, back] = ["full", "whole", "parts", "back"].map(|name| place.at(name));
    train(&full, "--steps 4 --schedule constant");
    train(&whole, "--steps 4 --schedule constant --compact");
    train(&parts, "--steps 2 --schedule constant --compact");
    train(&parts, "--steps 4 --schedule constant --compact --resume");
    let small = |dir: &str| fs::read(Path::new(dir).join("adapter_compact.safetensors")).unwrap();
    assert!(small(&whole) == small(&parts));
    assert!(!Path::new(&whole).join("adapter_model.safetensors").exists());
    run(&format!("convert --adapter {whole} --to peft --out {back}"), &[]).expect_success();
    let large = |dir: &str| fs::read(Path::new(dir).join("adapter_model.safetensors")).unwrap();
    assert!(large(&back) == large(&full));

    // What cannot be saved is said before anything is trained.
    let none = place.at("none");
    let words = format!("train --base {base} --method lora --set target_modules=q_proj --compact --data {data}");
    let words = format!("{words} --learning-rate 0.1 --steps 2 --out {none}");
    run(&words, &[]).expect_error(1, &["LORA", "nothing out"]);
    assert!(!place.exists("none"));
}

#[test]
fn any_number_of_threads_gives_the_same_factors_and_the_cache_holds_them() {
    let place = Workplace::new();
    let base = place.at("base");
    write_llama(&base, Sizes { hidden: 768, intermediate: 800, layers: 1, ..Sizes::default() });
    let method = "--method tinylora --set u=13 --set target_modules=all-linear --set init_weights=uniform";
    let init = |out: &str, more: &str, cache: &str, threads: &str| {
        let words = format!("init --base {base} {method} --out {out} {more}");
        run_with(&words, &place.at(cache), threads).expect_success()
    };
    let first = place.at("first");
    init(&first, "--no-factor-cache", "off", "1");
    assert!(!place.exists("off"));
    for threads in ["1", "2", "4"] {
        let (small, back) = (place.at(&format!("small{threads}")), place.at(&format!("back{threads}")));
        init(&small, "--compact --no-factor-cache", "off", threads);
        let words = format!("convert --adapter {small} --to peft --no-factor-cache --out {back}");
        run_with(&words, &place.at("off"), threads).expect_success();
        same(&first, &back);
    }
    for out in ["cold", "warm"] {
        init(&place.at(out), "", "cache", "2");
        same(&first, &place.at(out));
        // Gate and up, say, could be one weight; here all seven are different.
        assert_eq!(names(&place.at("cache/factors")).len(), 7);
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_one_warning() {
    let place = Workplace::new();
    let (base, file) = (fixture("base_llama"), place.write("file", "mine"));
    let words = format!("init --base {base} {METHOD} --out {}", place.at("out"));
    let outcome = run_with(&words, &file, "2").expect_success();
    assert_eq!(outcome.stderr.matches("warning: cannot ").count(), 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&file), "{}", outcome.stderr);
    assert!(place.exists("out") && fs::read_to_string(&file).unwrap() == "mine");
}
