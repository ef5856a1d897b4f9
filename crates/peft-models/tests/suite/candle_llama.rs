//! Our Llama equals candle-transformers' on the last position.

use crate::support::{NamedWeights, assert_close, fixture, token_ids};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as candle_llama;
use peft_models::{CausalLanguageModel, ForwardOptions, Llama, ModelFiles};

fn config() -> candle_llama::Config {
    candle_llama::Config {
        hidden_size: 32,
        intermediate_size: 48,
        vocab_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        bos_token_id: Some(1),
        eos_token_id: Some(candle_llama::LlamaEosToks::Multiple(vec![2, 3])),
        rope_scaling: None,
        max_position_embeddings: 64,
        tie_word_embeddings: false,
    }
}

fn candle_logits(config: &candle_llama::Config, vb: VarBuilder<'_>, ids: &Tensor) -> Tensor {
    let model = candle_llama::Llama::load(vb, config).unwrap();
    let mut cache = candle_llama::Cache::new(false, DType::F32, config, &Device::Cpu).unwrap();
    model.forward(ids, 0, &mut cache).unwrap()
}

fn assert_equal_on_last_position(config: candle_llama::Config) {
    let ids = token_ids(2, 40, config.vocab_size);
    let theirs = candle_logits(&config, NamedWeights::builder(DType::F32), &ids);
    let model = Llama::new(config, NamedWeights::builder(DType::F32)).unwrap();
    let ours = model.forward(&ids, ForwardOptions::last()).unwrap();
    assert_close(&ours.squeeze(1).unwrap(), &theirs, 1e-5);
    let all = model.forward(&ids, ForwardOptions::all()).unwrap();
    assert_close(&all.narrow(1, 39, 1).unwrap(), &ours, 1e-6);
}

#[test]
fn multi_head() {
    assert_equal_on_last_position(config());
}

#[test]
fn grouped_queries() {
    for kv_heads in [2, 1] {
        assert_equal_on_last_position(candle_llama::Config { num_key_value_heads: kv_heads, ..config() });
    }
}

#[test]
fn tied_head() {
    assert_equal_on_last_position(candle_llama::Config { tie_word_embeddings: true, ..config() });
}

#[test]
fn llama3_rope_scaling() {
    // With these the eight-wide heads have frequencies of all three kinds: kept, blended and divided.
    let scaling = candle_llama::Llama3RopeConfig {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
        rope_type: candle_llama::Llama3RopeType::Llama3,
    };
    let config = candle_llama::Config { rope_scaling: Some(scaling), rope_theta: 100.0, ..config() };
    assert_equal_on_last_position(config);
}

#[test]
fn golden_folder() {
    let files = ModelFiles::open(fixture("base_llama")).unwrap();
    let model = Llama::load(fixture("base_llama"), DType::F32, &Device::Cpu).unwrap();
    let shape = model.shape();
    let config = candle_llama::Config {
        hidden_size: shape.hidden_size,
        intermediate_size: 64,
        vocab_size: shape.vocab_size,
        num_key_value_heads: 2,
        rms_norm_eps: 1e-6,
        ..config()
    };
    let ids = token_ids(3, 11, shape.vocab_size);
    let theirs = candle_logits(&config, files.var_builder(DType::F32, &Device::Cpu), &ids);
    let ours = model.forward(&ids, ForwardOptions::last()).unwrap();
    assert_close(&ours.squeeze(1).unwrap(), &theirs, 1e-5);
}
