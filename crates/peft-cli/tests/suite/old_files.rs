//! Adapters as older PEFTs wrote them: a pickle, and other names of tensors.

use crate::support::{Workplace, every_reader_refuses, fixture, names, run};
use std::fs;
use std::path::Path;

/// An adapter folder with the config of a case and a pickle of its tensors.
fn old(place: &Workplace, case: &str) -> String {
    let dir = place.at(case);
    fs::create_dir(&dir).unwrap();
    let config = Path::new(&fixture(case)).join("adapter_config.json");
    fs::copy(config, Path::new(&dir).join("adapter_config.json")).unwrap();
    let pickle = Path::new(&fixture("old_files")).join(format!("{case}.bin"));
    fs::copy(pickle, Path::new(&dir).join("adapter_model.bin")).unwrap();
    dir
}

#[test]
fn a_pickle_is_inspected_like_any_adapter() {
    let place = Workplace::new();
    let dir = old(&place, "lora_default");
    let plain = fixture("lora_default");
    let (report, same) =
        [&dir, &plain].map(|dir| run(&format!("inspect {dir} --json"), &[]).expect_success().json()).into();
    for field in ["modules", "trainable_parameters", "bytes", "peft_type"] {
        assert_eq!(report[field], same[field], "{field}");
    }
    let name = report["tensors"][0]["name"].as_str().unwrap();
    assert!(name.contains(".lora_A.default.weight"), "the names of the file are shown: {name}");
    let words = format!("inspect {dir} --base {}", fixture("base_llama"));
    assert!(run(&words, &[]).expect_success().stdout.contains("fits  "));
}

#[test]
fn a_pickle_is_evaluated_trained_merged_and_converted_to_safetensors() {
    let place = Workplace::new();
    let (base, data, dir) = (fixture("base_llama"), place.at("data.jsonl"), old(&place, "lora_default"));
    let eval = |adapter: &str| {
        run(&format!("eval --base {base} --adapter {adapter} --data {data} --json"), &[]).expect_success().json()["loss"].clone()
    };
    assert_eq!(eval(&dir), eval(&fixture("lora_default")));
    run(&format!("merge --base {base} --adapter {dir} --out {}", place.at("merged")), &[]).expect_success();
    let (lora, trained) = (place.at("lora"), place.at("trained"));
    run(&format!("convert --adapter {dir} --to lora --out {lora}"), &[]).expect_success();
    assert_eq!(names(Path::new(&lora)), ["adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(eval(&lora), eval(&dir));
    let words =
        format!("train --base {base} --adapter {dir} --data {data} --out {trained} --steps 1 --learning-rate 0.1");
    run(&words, &[]).expect_success();
    assert!(names(Path::new(&trained)).contains(&"adapter_model.safetensors".to_owned()));
}

#[test]
fn a_pickle_that_is_broken_is_refused_by_every_reader() {
    let place = Workplace::new();
    let dir = old(&place, "lora_default");
    let path = Path::new(&dir).join("adapter_model.bin");
    let whole = fs::read(&path).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"\x80\x02}.", b""] {
        fs::write(&path, bytes).unwrap();
        let says = [path.to_str().unwrap(), "load the adapter with PEFT and save it again"];
        every_reader_refuses(&place, &fixture("base_llama"), &dir, &says);
        run(&format!("inspect {dir}"), &[]).expect_error(1, &says);
    }
    fs::remove_file(Path::new(&dir).join("adapter_config.json")).unwrap();
    run(&format!("inspect {dir}"), &[]).expect_error(1, &["it has no adapter_config.json"]);
}
