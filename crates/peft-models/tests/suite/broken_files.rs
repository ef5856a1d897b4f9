//! Broken or contradictory model folders: a clear error that names the culprit.

use crate::support::{Folder, fixture};
use candle_core::{DType, Device, Tensor};
use peft_core::Error;
use peft_models::{Gpt2, Llama, load_model};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;

fn assert_mentions(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn missing_folders_and_files() {
    let nowhere = load_model("no/such/folder", None, &Device::Cpu).unwrap_err().to_string();
    assert_mentions(&nowhere, &["no/such/folder: no such folder"]);
    let folder = Folder::copy_of("base_llama");
    fs::remove_file(folder.file("model.safetensors")).unwrap();
    assert_mentions(&folder.error(), &["neither model.safetensors nor model.safetensors.index.json"]);
    fs::write(folder.file("pytorch_model.bin"), b"x").unwrap();
    assert_mentions(&folder.error(), &["pickle"]);
    fs::remove_file(folder.file("config.json")).unwrap();
    assert_mentions(&folder.error(), &["not a model folder: it has no config.json"]);
}

#[test]
fn unreadable_configs() {
    let folder = Folder::copy_of("base_llama");
    fs::write(folder.file("config.json"), "{\"model_type\": ").unwrap();
    assert_mentions(&folder.error(), &["config.json: not a JSON object"]);
    assert_mentions(
        &Folder::copy_of("base_llama").set("model_type", json!(null)).error(),
        &["`model_type` is missing"],
    );
    let unknown = Folder::copy_of("base_llama").set("model_type", json!("mamba")).error();
    assert_mentions(&unknown, &["`model_type` is `mamba`; supported: gpt2, llama"]);
    let odd = Folder::copy_of("base_llama").set("dtype", json!("int8")).error();
    assert_mentions(&odd, &["`dtype` is `int8`; supported: float32, float16, bfloat16, float64"]);
    let quantized = Folder::copy_of("base_llama").set("quantization_config", json!({"bits": 4})).error();
    assert_mentions(&quantized, &["`quantization_config` is set"]);
}

#[test]
fn another_kind_of_model() {
    let error = Gpt2::load(fixture("base_llama"), DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert_mentions(&error, &["`model_type` is `llama`; supported: gpt2"]);
    let error = Llama::load(fixture("base_gpt2"), DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert_mentions(&error, &["`model_type` is `gpt2`; supported: llama"]);
}

#[test]
fn a_dtype_that_cannot_be_computed_in() {
    let error = load_model(fixture("base_llama"), DType::U8, &Device::Cpu).unwrap_err().to_string();
    assert_mentions(&error, &["cannot compute in u8"]);
}

#[test]
fn missing_left_over_and_misshapen_tensors() {
    const UP: &str = "model.layers.1.mlp.up_proj.weight";
    let missing = Folder::copy_of("base_llama").change_tensors(|t| drop(t.remove(UP)));
    assert_mentions(&missing.error(), &["the checkpoint has no tensor", UP, &missing.path().display().to_string()]);
    let extra = Folder::copy_of("base_llama").change_tensors(|t| drop(t.insert("model.extra".into(), zeros(&[2]))));
    assert_mentions(&extra.error(), &["tensors that nothing reads: `model.extra`"]);
    assert!(matches!(extra.load(), Err(Error::At { error, .. }) if matches!(*error, Error::UnexpectedTensors(_))));
    let misshapen = Folder::copy_of("base_llama").change_tensors(|t| drop(t.insert(UP.into(), zeros(&[64, 31]))));
    assert_mentions(&misshapen.error(), &[UP, "[64, 31]", "[64, 32]"]);
    let bias = Folder::copy_of("base_llama").set("mlp_bias", json!(true));
    assert_mentions(&bias.error(), &["model.layers.0.mlp.gate_proj.bias"]);
    let integers = Folder::copy_of("base_llama").change_tensors(|t| {
        t.insert(UP.into(), Tensor::zeros((64, 32), DType::U8, &Device::Cpu).unwrap());
    });
    assert_mentions(&integers.error(), &[UP, "stored as U8"]);
}

#[test]
fn layers_that_config_and_weights_count_differently() {
    for (layers, model, key) in
        [(1, "base_llama", "num_hidden_layers"), (3, "base_llama", "num_hidden_layers"), (1, "base_gpt2", "n_layer")]
    {
        let folder = Folder::copy_of(model).set(key, json!(layers));
        assert_mentions(
            &folder.error(),
            &["config.json", &format!("the config has {layers} layers but the weights have 2")],
        );
    }
    let endless = Folder::copy_of("base_llama").set("num_hidden_layers", json!(usize::MAX));
    assert_mentions(&endless.error(), &["but the weights have 2"]);
}

#[test]
fn shapes_too_large_for_any_memory() {
    let huge = 1u64 << 40;
    for key in ["vocab_size", "intermediate_size"] {
        assert_mentions(&Folder::copy_of("base_llama").set(key, json!(huge)).error(), &["1099511627776"]);
    }
    // Positions cost nothing until they occur.
    Folder::copy_of("base_llama").set("max_position_embeddings", json!(huge)).load().unwrap();
}

#[test]
fn truncated_and_lying_headers() {
    let folder = Folder::copy_of("base_llama");
    let file = folder.file("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut bits_off = whole.clone();
    bits_off[8 + header_len / 2] = 0xff;
    let mut endless_header = whole.clone();
    endless_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let lying = String::from_utf8(whole[8..8 + header_len].to_vec()).unwrap().replacen("[64,32]", "[99,32]", 1);
    let lying = [&whole[..8], lying.as_bytes(), &whole[8 + header_len..]].concat();
    let overflowing = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#;
    let overflowing = [&(overflowing.len() as u64).to_le_bytes()[..], overflowing, &[0; 4]].concat();
    let broken = [
        vec![],
        b"abc".to_vec(),
        whole[..20].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        bits_off,
        endless_header,
        lying,
        overflowing,
    ];
    for bytes in broken {
        fs::write(&file, &bytes).unwrap();
        assert_mentions(&folder.error(), &["model.safetensors is not a valid safetensors file"]);
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    folder.error();
}

/// The golden Llama in two shards.
fn sharded() -> Folder {
    let folder = Folder::copy_of("base_llama");
    let (mut shards, mut weight_map) = ([BTreeMap::new(), BTreeMap::new()], BTreeMap::new());
    for (name, tensor) in folder.tensors() {
        let shard = usize::from(name.contains("layers.1"));
        weight_map.insert(name.clone(), shard_name(shard));
        shards[shard].insert(name, tensor);
    }
    for (i, shard) in shards.into_iter().enumerate() {
        let shard: std::collections::HashMap<_, _> = shard.into_iter().collect();
        candle_core::safetensors::save(&shard, folder.file(&shard_name(i))).unwrap();
    }
    fs::remove_file(folder.file("model.safetensors")).unwrap();
    write_index(&folder, &weight_map);
    folder
}

fn shard_name(i: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", i + 1)
}

fn write_index(folder: &Folder, weight_map: &BTreeMap<String, String>) {
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(folder.file("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_are_read_as_one() {
    use peft_models::{CausalLanguageModel, ForwardOptions};
    let ids = crate::support::token_ids(1, 5, 64);
    let logits = |model: peft_models::CausalLm| model.forward(&ids, ForwardOptions::all()).unwrap();
    let whole = load_model(fixture("base_llama"), None, &Device::Cpu).unwrap();
    crate::support::assert_close(&logits(sharded().load().unwrap()), &logits(whole), 0.0);
}

#[test]
fn shards_that_contradict_their_index() {
    let folder = sharded();
    fs::remove_file(folder.file(&shard_name(1))).unwrap();
    assert_mentions(&folder.error(), &["cannot read", &shard_name(1)]);

    let folder = sharded();
    write_index(&folder, &[("a".to_owned(), shard_name(0)), ("b".to_owned(), shard_name(1))].into());
    assert_mentions(&folder.error(), &["index.json", "places the tensor `a`", &shard_name(0)]);

    let folder = sharded();
    write_index(&folder, &[("a".to_owned(), "../other.safetensors".to_owned())].into());
    assert_mentions(&folder.error(), &["`../other.safetensors` is not the name of a file in this folder"]);

    let folder = sharded();
    fs::copy(folder.file(&shard_name(0)), folder.file(&shard_name(1))).unwrap();
    assert_mentions(&folder.error(), &["is in", "too"]);

    let folder = sharded();
    fs::write(folder.file("model.safetensors.index.json"), "{}").unwrap();
    assert_mentions(&folder.error(), &["index.json", "weight_map"]);
}

#[test]
fn buffers_that_no_model_needs_are_no_error() {
    let folder = Folder::copy_of("base_llama").change_tensors(|t| {
        t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), zeros(&[4]));
    });
    folder.load().unwrap();
    let folder = Folder::copy_of("base_llama").set("tie_word_embeddings", json!(true));
    folder.load().unwrap();
    let folder = Folder::copy_of("base_gpt2").change_tensors(|t| {
        t.insert("transformer.h.0.attn.bias".into(), zeros(&[1, 1, 64, 64]));
        t.insert("transformer.h.0.attn.masked_bias".into(), zeros(&[1]));
        t.insert("lm_head.weight".into(), zeros(&[64, 32]));
    });
    folder.load().unwrap();
}

#[test]
fn gpt2_without_a_prefix_is_read() {
    let folder = Folder::copy_of("base_gpt2").change_tensors(|tensors| {
        let bare = tensors.drain().map(|(name, t)| (name.trim_start_matches("transformer.").to_owned(), t)).collect();
        *tensors = bare;
    });
    folder.load().unwrap();
    let missing = folder.change_tensors(|t| drop(t.remove("h.1.ln_1.bias")));
    assert_mentions(&missing.error(), &["`h.1.ln_1.bias`"]);
}
