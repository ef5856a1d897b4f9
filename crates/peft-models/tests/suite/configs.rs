//! Configs of transformers 4 and 5 mean the same, and what is not supported is said.

use crate::support::{NamedWeights, assert_close, fixture, token_ids};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama as candle_llama;
use peft_models::llama::RopeScaling;
use peft_models::{CausalLanguageModel, ForwardOptions, Gpt2, Gpt2Config, Llama, LlamaConfig};
use serde_json::{Map, Value, json};
use std::fs;

/// A small config of transformers 4, with fields replaced; `null` removes one.
fn config_text(changes: Value) -> String {
    let mut config = json!({
        "model_type": "llama", "hidden_act": "silu", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "eos_token_id": 2, "torch_dtype": "float32",
    });
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    config.to_string()
}

fn parse(changes: Value) -> LlamaConfig {
    LlamaConfig::from_json(&config_text(changes)).unwrap()
}

fn error(changes: Value) -> String {
    LlamaConfig::from_json(&config_text(changes)).unwrap_err().to_string()
}

fn llama3() -> Value {
    json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    })
}

#[test]
fn absent_fields_have_transformers_defaults() {
    let config =
        parse(json!({"num_key_value_heads": null, "head_dim": null, "rope_theta": null, "eos_token_id": null}));
    assert_eq!((config.num_key_value_heads(), config.head_dim()), (4, 4));
    assert_eq!((config.rope_theta, config.rope_scaling), (10_000.0, RopeScaling::Default));
    assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
    assert!(config.eos_token_ids.is_empty());
}

#[test]
fn both_versions_spell_rotary_positions() {
    let scaled = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
    };
    let v4 = parse(json!({"rope_scaling": llama3()}));
    let mut parameters = llama3();
    parameters["rope_theta"] = json!(500_000.0);
    let v5 = parse(json!({"rope_theta": null, "rope_parameters": parameters}));
    for config in [v4, v5] {
        assert_eq!((config.rope_theta, &config.rope_scaling), (500_000.0, &scaled));
    }
    let plain = parse(json!({"rope_theta": null, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}));
    assert_eq!((plain.rope_theta, plain.rope_scaling), (7.0, RopeScaling::Default));
    let old = parse(json!({"rope_scaling": {"type": "linear", "factor": 2}}));
    assert_eq!((old.rope_theta, old.rope_scaling), (500_000.0, RopeScaling::Linear { factor: 2.0 }));
}

#[test]
fn end_tokens_are_one_or_many() {
    assert_eq!(parse(json!({"eos_token_id": 7})).eos_token_ids, [7]);
    assert_eq!(parse(json!({"eos_token_id": [7, 9]})).eos_token_ids, [7, 9]);
}

#[test]
fn what_is_not_supported_is_said() {
    let cases = [
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
            "`rope_type` is `yarn`; supported: default, linear, llama3",
        ),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "`factor` is missing"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}), "`factor` is 0"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "`partial_rotary_factor` is 0.5"),
        (json!({"hidden_act": "gelu"}), "`hidden_act` is `gelu`; supported: silu"),
        (json!({"vocab_size": null}), "`vocab_size` is missing"),
        (json!({"vocab_size": -1}), "`vocab_size` is -1"),
        (json!({"hidden_size": "16"}), "`hidden_size` is \"16\""),
        (json!({"num_hidden_layers": 0}), "`num_hidden_layers` is 0"),
        (json!({"num_attention_heads": 5}), "`hidden_size` 16 is not a multiple of `num_attention_heads` 5"),
        (json!({"num_key_value_heads": 3}), "`num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3"),
        (json!({"head_dim": 3}), "`head_dim` is 3"),
        (json!({"head_dim": usize::MAX - 1}), "`head_dim` is"),
        (json!({"rms_norm_eps": -1.0}), "`rms_norm_eps` is -1"),
        (json!({"eos_token_id": "end"}), "`eos_token_id` is \"end\""),
    ];
    for (changes, message) in cases {
        let error = error(changes);
        assert!(error.starts_with("config.json: ") && error.contains(message), "{error}");
    }
    let error = LlamaConfig::from_json("[1]").unwrap_err().to_string();
    assert!(error.contains("not a JSON object"), "{error}");
}

#[test]
fn gpt2_config_says_what_is_not_supported() {
    let golden = fs::read_to_string(fixture("base_gpt2").join("config.json")).unwrap();
    let cases = [
        ("activation_function", json!("relu"), "`activation_function` is `relu`; supported: gelu_new"),
        ("add_cross_attention", json!(true), "`add_cross_attention` is true"),
        ("n_head", json!(5), "`n_embd` 32 is not a multiple of `n_head` 5"),
        ("n_layer", json!("2"), "`n_layer` is \"2\""),
    ];
    for (key, value, message) in cases {
        let mut config: Map<String, Value> = serde_json::from_str(&golden).unwrap();
        config.insert(key.into(), value);
        let error = Gpt2Config::from_json(&Value::Object(config).to_string()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// Where every wavelength is longer than the original context, llama3 scaling divides all frequencies, as linear scaling does.
#[test]
fn linear_scaling_divides_all_frequencies() {
    let ours = parse(json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}));
    let theirs = candle_llama::Config {
        hidden_size: 16,
        intermediate_size: 24,
        vocab_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: Some(candle_llama::Llama3RopeConfig {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 1,
            rope_type: candle_llama::Llama3RopeType::Llama3,
        }),
        max_position_embeddings: 64,
        tie_word_embeddings: false,
    };
    let ids = token_ids(1, 30, 40);
    let ours =
        Llama::new(ours, NamedWeights::builder(DType::F32)).unwrap().forward(&ids, ForwardOptions::last()).unwrap();
    let mut cache = candle_llama::Cache::new(false, DType::F32, &theirs, &Device::Cpu).unwrap();
    let theirs = candle_llama::Llama::load(NamedWeights::builder(DType::F32), &theirs).unwrap();
    assert_close(&ours.squeeze(1).unwrap(), &theirs.forward(&ids, 0, &mut cache).unwrap(), 1e-5);
}

/// The scores of block `i` are divided by `i + 1`; dividing its queries by that is the same.
#[test]
fn gpt2_scales_attention_by_depth() {
    struct Divided;
    impl candle_nn::var_builder::SimpleBackend for Divided {
        fn get(
            &self,
            s: candle_core::Shape,
            name: &str,
            _: candle_nn::Init,
            d: DType,
            _: &Device,
        ) -> candle_core::Result<Tensor> {
            let tensor = NamedWeights { stdev: 0.2 }.tensor(name, &s).to_dtype(d)?;
            if !name.contains("h.1.attn.c_attn") {
                return Ok(tensor);
            }
            let last = tensor.rank() - 1;
            let (queries, rest) = (tensor.narrow(last, 0, 12)?, tensor.narrow(last, 12, 24)?);
            Tensor::cat(&[(queries / 2.0)?, rest], last)
        }
        fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
            candle_core::bail!("{name}")
        }
        fn contains_tensor(&self, _: &str) -> bool {
            false
        }
    }
    let ids = token_ids(2, 9, 40);
    let mut config = crate::support::tiny_gpt2_config();
    config.tie_word_embeddings = false;
    let divided = candle_nn::VarBuilder::from_backend(Box::new(Divided), DType::F32, Device::Cpu);
    let by_hand = Gpt2::new(config.clone(), divided).unwrap().forward(&ids, ForwardOptions::all()).unwrap();
    config.scale_attn_by_inverse_layer_idx = true;
    let scaled =
        Gpt2::new(config, NamedWeights::builder(DType::F32)).unwrap().forward(&ids, ForwardOptions::all()).unwrap();
    assert_close(&scaled, &by_hand, 1e-5);
}
