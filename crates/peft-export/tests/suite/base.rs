//! Reading what an export must know from a `config.json`.

use peft_export::{Architecture, BaseModel};
use peft_testkit::fixture::root;
use std::fs;

#[test]
fn the_fixtures_are_read() {
    let llama = BaseModel::open(root().join("base_llama")).unwrap();
    assert_eq!((llama.architecture, llama.layers, llama.heads, llama.kv_heads), (Architecture::Llama, 2, 4, 2));
    assert!(!llama.tied);
    let gpt2 = BaseModel::open(root().join("base_gpt2")).unwrap();
    assert_eq!((gpt2.architecture, gpt2.layers, gpt2.heads, gpt2.kv_heads), (Architecture::Gpt2, 2, 4, 4));
    assert!(gpt2.tied);
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    let error = || BaseModel::open(dir.path()).unwrap_err().to_string();
    let absent = BaseModel::open(dir.path().join("absent")).unwrap_err().to_string();
    assert!(absent.contains("absent") && absent.contains("no such folder"), "{absent}");
    assert!(error().contains(place) && error().contains("has no config.json"), "{}", error());
    for (config, says) in [
        ("", "config.json"),
        ("{}", "model_type"),
        (
            r#"{"model_type": "mamba"}"#,
            "`mamba` cannot be exported; supported: llama, mistral, qwen2, qwen3, gemma, gemma2, gpt2",
        ),
        (r#"{"model_type": "llama"}"#, "num_hidden_layers"),
        (r#"{"model_type": "llama", "num_hidden_layers": 2}"#, "num_attention_heads"),
        (r#"{"model_type": "llama", "num_hidden_layers": "two"}"#, "num_hidden_layers"),
        (r#"{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 0}"#, "attention heads is 0"),
        (r#"{"model_type": "gpt2", "n_layer": 2, "n_head": -1}"#, "`n_head` is -1"),
    ] {
        fs::write(dir.path().join("config.json"), config).unwrap();
        assert!(error().contains(says) && error().contains(place), "{config}: {}", error());
    }
}
