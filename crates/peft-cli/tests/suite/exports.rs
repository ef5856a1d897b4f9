//! `convert --to mlx` and `--to gguf`: what they write, and what they refuse without writing anything.

use crate::support::{Outcome, Workplace, fixture, names, run};
use candle_core::quantized::gguf_file::Content;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;

const FORMATS: [(&str, &str); 2] = [("mlx", "out"), ("gguf", "out.gguf")];

fn convert(adapter: &str, base: &str, to: &str, out: &str) -> Outcome {
    run(&format!("convert --adapter {adapter} --base {base} --to {to} --out {out}"), &[])
}

/// Expects the same complaint from both formats, and no new file.
#[track_caller]
fn both_refuse(place: &Workplace, adapter: &str, base: &str, says: &[&str]) {
    let before = place.names();
    for (to, out) in FORMATS {
        convert(adapter, base, to, &place.at(out)).expect_error(1, says);
        assert_eq!(place.names(), before, "{to}");
    }
}

#[test]
fn both_formats_are_written_and_reported() {
    let place = Workplace::new();
    let (adapter, base) = (fixture("lora_rslora_rank_pattern"), fixture("base_llama"));
    let (mlx, gguf) = (place.at("new/mlx"), place.at("new/sums.gguf"));
    let report = run(&format!("convert --adapter {adapter} --base {base} --to mlx --out {mlx} --json"), &[]);
    let expected = json!({
        "adapter": adapter, "out": mlx, "from": "LORA", "to": "MLX", "modules": 6, "tensors": 12,
        // Both factors of rank 6 of two layers with q_proj 32x32, v_proj 16x32 and down_proj 32x64.
        "parameters": 2 * 6 * (64 + 48 + 96),
    });
    assert_eq!(report.expect_success().json(), expected);
    assert_eq!(names(Path::new(&mlx)), ["adapter_config.json", "adapters.safetensors"]);

    let report = run(&format!("convert --adapter {adapter} --base {base} --to gguf --out {gguf} --json"), &[]);
    let report = report.expect_success().json();
    assert_eq!((&report["to"], &report["tensors"], &report["out"]), (&json!("GGUF"), &json!(12), &json!(gguf)));
    let content = Content::read(&mut File::open(&gguf).unwrap()).unwrap();
    assert_eq!(content.metadata["general.name"].to_string().unwrap(), "lora_rslora_rank_pattern");
    assert_eq!(content.tensor_infos.len(), 12);
    assert_eq!(names(Path::new(&place.at("new"))), ["mlx", "sums.gguf"]);
}

#[test]
fn only_the_config_of_the_base_is_read() {
    let place = Workplace::new();
    let base = place.at("base");
    fs::create_dir(&base).unwrap();
    fs::copy(format!("{}/config.json", fixture("base_llama")), format!("{base}/config.json")).unwrap();
    for (to, out) in FORMATS {
        for rank in ["", "--rank 1", "--threshold 0.9"] {
            let out = place.at(&format!("{}{out}", rank.replace(' ', "_")));
            convert(&fixture("tinylora_default"), &base, &format!("{to} {rank}"), &out).expect_success();
            assert!(Path::new(&out).exists(), "{to} {rank}");
        }
    }
}

#[test]
fn base_weights_that_are_left_out_are_mentioned() {
    let place = Workplace::new();
    for (to, out) in FORMATS {
        let outcome = convert(&fixture("lora_embedding"), &fixture("base_llama"), to, &place.at(out)).expect_success();
        assert!(outcome.stderr.contains("model.embed_tokens: the base weight"), "{}", outcome.stderr);
        let outcome = convert(&fixture("lora_default"), &fixture("base_llama"), to, &place.at(out)).expect_success();
        assert_eq!(outcome.stderr, "");
    }
}

#[test]
fn a_base_is_needed_and_must_be_one() {
    let place = Workplace::new();
    let adapter = fixture("lora_default");
    let unnamed = place.changed_adapter("unnamed", |files| {
        files.config.remove("base_model_name_or_path");
    });
    let before = place.names();
    for (to, out) in FORMATS {
        let out = place.at(out);
        run(&format!("convert --adapter {adapter} --to {to} --out {out}"), &[])
            .expect_error(1, &["was made for base_llama", "--base"]);
        run(&format!("convert --adapter {unnamed} --to {to} --out {out}"), &[])
            .expect_error(2, &["--base MODEL", "config.json"]);
        convert(&adapter, &place.at("absent"), to, &out).expect_error(1, &[&place.at("absent"), "no such folder"]);
        convert(&adapter, &adapter, to, &out).expect_error(1, &[&adapter, "has no config.json"]);
        assert_eq!(place.names(), before, "{to}");
    }
    let base = place.at("mamba");
    fs::create_dir(&base).unwrap();
    place.write("mamba/config.json", &json!({ "model_type": "mamba" }).to_string());
    both_refuse(&place, &adapter, &base, &["mamba/config.json", "`mamba`", "supported: llama, mistral, qwen2"]);
    both_refuse(&place, &adapter, &fixture("base_gpt2"), &["`model.layers.0.self_attn.q_proj`", "gpt2", "attn.c_attn"]);
}

#[test]
fn what_a_format_cannot_hold_is_named() {
    let place = Workplace::new();
    let (llama, gpt2) = (fixture("base_llama"), fixture("base_gpt2"));
    both_refuse(&place, &fixture("tinylora_modules_to_save"), &llama, &["`lm_head`", "trained as a whole", "merge"]);
    both_refuse(&place, &fixture("gpt2_conv1d_bias_all"), &gpt2, &["`transformer.h.0.attn.c_attn`", "bias is trained"]);
    both_refuse(&place, &fixture("lora_dora"), &llama, &[]);
    let mut config: Value = serde_json::from_slice(&fs::read(format!("{llama}/config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    fs::create_dir(place.at("tied")).unwrap();
    place.write("tied/config.json", &config.to_string());
    both_refuse(&place, &fixture("lora_embedding"), &place.at("tied"), &["`model.embed_tokens`", "output head"]);
}

#[test]
fn broken_adapters_are_refused() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    let adapter = place.changed_adapter("adapter", |files| {
        files.tensors.remove("base_model.tinylora_v.0");
    });
    both_refuse(&place, &adapter, &base, &["tinylora_v.0"]);
    both_refuse(&place, &base, &base, &[&base, "not an adapter folder"]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let place = Workplace::new();
    let (adapter, base) = (place.adapter("adapter"), fixture("base_llama"));
    let file = place.write("file", "precious");
    fs::create_dir(place.at("folder.gguf")).unwrap();
    let before = (place.names(), names(Path::new(&adapter)));
    let folder = place.at("folder.gguf");
    convert(&adapter, &base, "gguf", &folder).expect_error(1, &[&folder, "it is a folder"]);
    let below = format!("{file}/out.gguf");
    convert(&adapter, &base, "gguf", &below).expect_error(1, &[&file, "not a folder"]);
    convert(&adapter, &base, "mlx", &file).expect_error(1, &[&file, "not a folder"]);
    convert(&adapter, &base, "mlx", &adapter).expect_error(1, &["--out and --adapter are the same folder"]);
    convert(&adapter, &base, "mlx", &place.adapter("other")).expect_error(1, &["holds a PEFT adapter"]);
    fs::remove_dir_all(place.at("other")).unwrap();
    // A file that the adapter is made of cannot be overwritten either.
    for name in ["adapter_model.safetensors", "out"] {
        let out = format!("{adapter}/{name}");
        convert(&adapter, &base, "gguf", &out).expect_error(2, &[&out, "end in .gguf"]);
    }
    assert_eq!((place.names(), names(Path::new(&adapter))), before);
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}
