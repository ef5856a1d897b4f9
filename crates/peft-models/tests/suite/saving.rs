//! Model folders written and read again.

use crate::support::{Folder, NamedWeights, assert_close, fixture, tiny_llama_config, tiny_models, token_ids};
use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use peft_core::{ModuleNames, PeftModel, TargetSpec};
use peft_models::llama::RopeScaling;
use peft_models::{CausalLanguageModel, CausalLm, Companions, ForwardOptions, Llama, ModelFiles, load_model};
use peft_tinylora::{TinyLoraConfig, TinyLoraInit};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn config(dir: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

fn logits(model: &dyn CausalLanguageModel) -> Tensor {
    model.forward(&token_ids(2, 6, 40), ForwardOptions::all()).unwrap()
}

fn reload(dir: &Path) -> CausalLm {
    load_model(dir, None, &Device::Cpu).unwrap()
}

#[test]
fn golden_folders_come_back_as_they_were() {
    for name in ["base_llama", "base_llama_bf16", "base_gpt2"] {
        let dir = TempDir::new().unwrap();
        load_model(fixture(name), None, &Device::Cpu).unwrap().save(dir.path(), &Companions::none()).unwrap();
        let original = Folder::copy_of(name);
        assert_eq!(config(dir.path()), original.config(), "{name}");
        let (before, after) = (original.tensors(), load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap());
        assert_eq!(before.len(), after.len());
        for (tensor, before) in before {
            assert_eq!(before.dtype(), after[&tensor].dtype());
            assert_close(&before, &after[&tensor], 0.0);
        }
    }
}

#[test]
fn models_made_in_code_come_back_as_they_were() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for model in tiny_models(dtype) {
            let dir = TempDir::new().unwrap();
            let folder = dir.path().join("new");
            let model: &dyn CausalLanguageModel = &model;
            model.save(&folder, &Companions::none()).unwrap();
            let again = reload(&folder);
            assert_eq!(
                (again.shape(), again.dtype(), again.eos_token_ids()),
                (model.shape(), dtype, model.eos_token_ids())
            );
            assert_close(&logits(&again), &logits(model), 0.0);
        }
    }
}

#[test]
fn rotary_scaling_survives_in_both_spellings() {
    let mut llama = tiny_llama_config();
    llama.rope_theta = 100.0;
    llama.rope_scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let model = Llama::new(llama, NamedWeights::builder(DType::F32)).unwrap();
    let dir = TempDir::new().unwrap();
    model.save(dir.path(), &Companions::none()).unwrap();
    for unread in [["rope_parameters", ""], ["rope_theta", "rope_scaling"]] {
        let mut fields = config(dir.path());
        fields.retain(|key, _| !unread.contains(&key.as_str()));
        let weights = fs::read(dir.path().join("model.safetensors")).unwrap();
        let files = ModelFiles::from_bytes(&Value::Object(fields).to_string(), weights).unwrap();
        let again = CausalLm::from_files(&files, None, &Device::Cpu).unwrap();
        assert_close(&logits(&again), &logits(&model), 0.0);
    }
}

#[test]
fn a_tied_head_is_written_once() {
    let mut llama = tiny_llama_config();
    llama.tie_word_embeddings = true;
    let model = Llama::new(llama, NamedWeights::builder(DType::F32)).unwrap();
    let dir = TempDir::new().unwrap();
    model.save(dir.path(), &Companions::none()).unwrap();
    assert_eq!(config(dir.path())["tie_word_embeddings"], true);
    assert!(!load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap().contains_key("lm_head.weight"));
    assert_close(&logits(&reload(dir.path())), &logits(&model), 0.0);

    // Untied, the head is a weight of its own and the config says so.
    let mut model = PeftModel::new(model);
    model.untie().unwrap();
    model.base().save(dir.path(), &Companions::none()).unwrap();
    assert_eq!(config(dir.path())["tie_word_embeddings"], false);
    let tensors = load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    assert_close(&tensors["lm_head.weight"], &tensors["model.embed_tokens.weight"], 0.0);
    assert_close(&logits(&reload(dir.path())), &logits(model.base()), 0.0);
}

#[test]
fn merged_adapters_are_written_and_unmerged_ones_refused() {
    for model in tiny_models(DType::F32) {
        let plain = logits(&model);
        let mut model = PeftModel::new(model);
        let targets = TargetSpec::new(ModuleNames::all_linear());
        model.add_adapter("a", TinyLoraConfig::new(targets).with_init_weights(TinyLoraInit::Uniform)).unwrap();
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("merged");
        let error = model.base().save(&folder, &Companions::none()).unwrap_err().to_string();
        assert!(error.contains("not merged") && !folder.exists(), "{error}");
        model.merge().unwrap();
        model.base().save(&folder, &Companions::none()).unwrap();
        let merged = logits(&reload(&folder));
        assert_close(&merged, &logits(model.base()), 0.0);
        assert!(crate::support::max_diff(&merged, &plain) > 1e-3, "the adapter does something");
    }
}

#[test]
fn companions_and_unknown_fields_are_carried_along() {
    let source = Folder::copy_of("base_llama").set("a_field_of_the_future", json!({"x": [1, 2]}));
    fs::write(source.file("tokenizer.json"), b"{}").unwrap();
    fs::write(source.file("chat_template.jinja"), b"{{ messages }}").unwrap();
    fs::write(source.file("notes.txt"), b"private").unwrap();
    let dir = TempDir::new().unwrap();
    let companions = Companions::of_folder(source.path()).unwrap().with("generation_config.json", *b"{\"top_k\": 1}");
    source.load().unwrap().save(dir.path(), &companions).unwrap();
    assert_eq!(config(dir.path())["a_field_of_the_future"], json!({"x": [1, 2]}));
    assert_eq!(fs::read(dir.path().join("tokenizer.json")).unwrap(), b"{}");
    assert_eq!(fs::read(dir.path().join("chat_template.jinja")).unwrap(), b"{{ messages }}");
    assert_eq!(fs::read(dir.path().join("generation_config.json")).unwrap(), b"{\"top_k\": 1}");
    assert!(!dir.path().join("notes.txt").exists());
}

#[test]
fn a_model_can_be_saved_over_the_files_it_was_read_from() {
    let folder = Folder::copy_of("base_llama");
    let model = folder.load().unwrap();
    let before = logits(&model);
    model.save(folder.path(), &Companions::none()).unwrap();
    assert_close(&logits(&folder.load().unwrap()), &before, 0.0);
}

#[test]
fn a_changed_dtype_is_recorded_where_the_config_has_it() {
    for (old, new) in [("torch_dtype", "dtype"), ("dtype", "torch_dtype")] {
        let source = Folder::copy_of("base_llama").set(new, Value::Null).set(old, json!("float32"));
        let dir = TempDir::new().unwrap();
        load_model(source.path(), DType::BF16, &Device::Cpu).unwrap().save(dir.path(), &Companions::none()).unwrap();
        assert_eq!(config(dir.path())[old], "bfloat16");
        assert!(!config(dir.path()).contains_key(new));
        assert_eq!(reload(dir.path()).dtype(), DType::BF16);
    }
}

#[test]
fn an_unwritable_place_is_named() {
    let folder = Folder::copy_of("base_llama");
    let model = folder.load().unwrap();
    let error = model.save(&folder.file("config.json").join("below"), &Companions::none()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}
