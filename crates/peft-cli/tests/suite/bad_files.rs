//! Files that are missing or broken: exit code 1, the culprit by name, nothing written.

use crate::support::{Files, Workplace, every_reader_refuses, fixture, run};
use std::fs;
use std::path::Path;

/// As above, and commands that need no base model find the fault too.
fn every_reader_refuses_alone(place: &Workplace, adapter: &str, says: &[&str]) {
    every_reader_refuses(place, &fixture("base_llama"), adapter, says);
    let before = place.names();
    run(&format!("inspect {adapter}"), &[]).expect_error(1, says);
    run(&format!("convert --adapter {adapter} --to lora --out {}", place.at("out")), &[]).expect_error(1, says);
    assert_eq!(place.names(), before);
}

#[test]
fn missing_folders_and_files_are_named() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    let (data, out, nowhere) = (place.at("data.jsonl"), place.at("out"), place.at("nowhere"));
    every_reader_refuses_alone(&place, &nowhere, &[&nowhere, "no such folder"]);
    let before = place.names();
    for (words, says) in [
        (format!("init --base {nowhere} --method tinylora --out {out}"), "no such folder"),
        (format!("eval --base {nowhere} --data {data}"), "no such folder"),
        (format!("eval --base {base} --data {nowhere}"), "nowhere"),
        (format!("init --base {base} --config {nowhere} --out {out}"), "nowhere"),
        (format!("eval --base {data} --data {data}"), "this is a file"),
        (format!("generate --base {base} --prompt x"), "no tokenizer.json"),
    ] {
        run(&words, &[]).expect_error(1, &[says]);
        assert_eq!(place.names(), before, "{words}");
    }

    let adapter = place.adapter("adapter");
    fs::remove_file(Path::new(&adapter).join("adapter_model.safetensors")).unwrap();
    every_reader_refuses_alone(
        &place,
        &adapter,
        &[&adapter, "it has neither adapter_model.safetensors nor adapter_model.bin"],
    );
    let adapter = place.adapter("adapter");
    fs::remove_file(Path::new(&adapter).join("adapter_config.json")).unwrap();
    every_reader_refuses_alone(&place, &adapter, &[&adapter, "it has no adapter_config.json"]);

    let folder = place.at("base");
    fs::create_dir(&folder).unwrap();
    run(&format!("eval --base {folder} --data {data}"), &[]).expect_error(1, &[&folder, "config.json"]);
    fs::copy(Path::new(&base).join("config.json"), Path::new(&folder).join("config.json")).unwrap();
    run(&format!("eval --base {folder} --data {data}"), &[]).expect_error(1, &[&folder, "model.safetensors"]);
    run(&format!("inspect {folder}"), &[]).expect_error(1, &[&folder, "model.safetensors"]);
}

/// A safetensors file of this header and so many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Files whose header lies, given one whose header does not.
fn lying_files(honest: &[u8]) -> Vec<Vec<u8>> {
    let mut endless = honest.to_vec();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let tensor = |shape: &str, end: usize| {
        format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}")
    };
    vec![
        // Cut in the header's length, in the header, in the data.
        honest[..4].to_vec(),
        honest[..40].to_vec(),
        honest[..honest.len() - 10].to_vec(),
        // A header without an end, and one that is not JSON.
        endless,
        safetensors("{\"x\"", 0),
        // Data that ends early, shapes that do not fit it, of 2^80 and of more elements than can be counted.
        safetensors(&tensor("[4]", 16), 8),
        safetensors(&tensor("[5]", 16), 16),
        safetensors(&tensor("[1099511627776,1099511627776]", 16), 16),
        safetensors(&tensor("[18446744073709551615,2]", 16), 16),
        // Data that belongs to no tensor.
        [honest, &[0; 64]].concat(),
    ]
}

#[test]
fn broken_safetensors_of_an_adapter_are_named() {
    let place = Workplace::new();
    let adapter = place.adapter("adapter");
    let path = Path::new(&adapter).join("adapter_model.safetensors");
    for bytes in lying_files(&fs::read(&path).unwrap()) {
        fs::write(&path, bytes).unwrap();
        every_reader_refuses_alone(&place, &adapter, &[path.to_str().unwrap(), "not a valid safetensors file"]);
    }
}

#[test]
fn broken_safetensors_of_a_base_are_named() {
    let place = Workplace::new();
    let base = place.at("base");
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&fixture("base_llama")).join(file), Path::new(&base).join(file)).unwrap();
    }
    let path = Path::new(&base).join("model.safetensors");
    let before = place.names();
    for bytes in lying_files(&fs::read(&path).unwrap()) {
        fs::write(&path, bytes).unwrap();
        for words in [
            format!("eval --base {base} --data {}", place.at("data.jsonl")),
            format!("init --base {base} --method tinylora --out {}", place.at("out")),
            format!("inspect {base}"),
        ] {
            run(&words, &[]).expect_error(1, &[path.to_str().unwrap()]);
            assert_eq!(place.names(), before);
        }
    }
}

#[test]
fn a_huge_tensor_of_the_right_name_costs_no_memory() {
    let place = Workplace::new();
    let adapter = place.adapter("adapter");
    let path = Path::new(&adapter).join("adapter_model.safetensors");
    // Empty, so that header and data agree, but huge in one direction.
    let name = "base_model.tinylora_v.0";
    let header = format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1099511627776,0],\"data_offsets\":[0,0]}}}}");
    fs::write(&path, safetensors(&header, 0)).unwrap();
    every_reader_refuses(&place, &fixture("base_llama"), &adapter, &[&adapter]);
}

#[test]
fn configs_that_are_no_configs_are_named() {
    let place = Workplace::new();
    for (text, says) in [
        ("{\"peft_type\": \"TINYLORA\",", "EOF"),
        ("[]", "invalid type"),
        ("{}", "unknown adapter method ``; registered: IA3, LORA, LORA_XS, TINYLORA, VERA"),
        (
            "{\"peft_type\": \"BREEZE\"}",
            "unknown adapter method `BREEZE`; registered: IA3, LORA, LORA_XS, TINYLORA, VERA",
        ),
        ("{\"peft_type\": \"TINYLORA\", \"r\": 0}", "`r` is 0"),
        ("{\"peft_type\": \"TINYLORA\", \"weight_tying\": 2}", "weight_tying"),
        ("{\"peft_type\": \"TINYLORA\", \"task_type\": \"CHESS\"}", "CHESS"),
    ] {
        let adapter = place.adapter("adapter");
        let path = Path::new(&adapter).join("adapter_config.json");
        fs::write(&path, text).unwrap();
        every_reader_refuses_alone(&place, &adapter, &[path.to_str().unwrap(), says]);
        let words = format!("init --base {} --config {adapter} --out {}", fixture("base_llama"), place.at("out"));
        run(&words, &[]).expect_error(1, &[path.to_str().unwrap(), says]);
        assert!(!place.exists("out"));
    }
}

#[test]
fn configs_that_contradict_their_tensors_are_refused() {
    let place = Workplace::new();
    for (field, value, says) in [
        ("r", 3.into(), "tinylora_"),
        ("r", 1.into(), "tinylora_"),
        ("u", 5.into(), "[5"),
        ("weight_tying", 1.0.into(), "tinylora_v"),
        ("weight_tying", 0.5.into(), "tinylora_v"),
        ("target_modules", serde_json::json!(["q_proj"]), "tinylora_v.2"),
    ] {
        let change = |files: &mut Files| drop(files.config.insert(field.to_owned(), value));
        let adapter = place.changed_adapter("adapter", change);
        every_reader_refuses(&place, &fixture("base_llama"), &adapter, &[&adapter, says]);
    }
}

#[test]
fn tensors_that_are_missing_or_left_over_are_named() {
    let place = Workplace::new();
    let v = |group: usize| format!("base_model.tinylora_v.{group}");
    let missing = place.changed_adapter("adapter", |files| drop(files.tensors.remove(&v(2)).unwrap()));
    every_reader_refuses_alone(&place, &missing, &[&missing, &v(2)]);
    let extra = place.changed_adapter("adapter", |files| {
        let one = files.tensors[&v(0)].clone();
        files.tensors.insert(v(4), one);
    });
    every_reader_refuses_alone(&place, &extra, &[&extra, &v(4)]);
    let foreign = place.changed_adapter("adapter", |files| {
        let one = files.tensors[&v(0)].clone();
        files.tensors.insert("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".into(), one);
    });
    every_reader_refuses_alone(&place, &foreign, &[&foreign, "lora_A"]);
}
