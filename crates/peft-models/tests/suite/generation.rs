//! Decoding with a key-value cache gives what a full pass gives.

use crate::support::{NamedWeights, assert_close, tiny_llama_config, tiny_models, token_ids};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use peft_models::{CausalLanguageModel, ForwardOptions, KvCache, Llama};

/// Logits of all positions, computed in pieces of these lengths.
fn in_pieces(model: &dyn CausalLanguageModel, ids: &Tensor, pieces: &[usize], cache: &mut KvCache) -> Tensor {
    let mut logits = vec![];
    for &piece in pieces {
        let part = ids.narrow(1, cache.len(), piece).unwrap();
        logits.push(model.forward(&part, ForwardOptions::all().with_cache(cache)).unwrap());
    }
    Tensor::cat(&logits, 1).unwrap()
}

#[test]
fn pieces_equal_the_whole() {
    for model in tiny_models(DType::F32) {
        let ids = token_ids(2, 20, 40);
        let whole = model.forward(&ids, ForwardOptions::all()).unwrap();
        for pieces in [&[1; 20][..], &[20], &[7, 1, 1, 1, 1, 9], &[3, 5, 12]] {
            let mut cache = model.new_cache();
            assert_close(&in_pieces(&model, &ids, pieces, &mut cache), &whole, 1e-5);
            assert_eq!(cache.len(), 20);
        }
    }
}

#[test]
fn a_reset_cache_takes_other_batches() {
    for model in tiny_models(DType::F32) {
        let mut cache = model.new_cache();
        in_pieces(&model, &token_ids(1, 9, 40), &[5, 4], &mut cache);
        let ids = token_ids(3, 6, 40);
        let error = model.forward(&ids, ForwardOptions::all().with_cache(&mut cache)).unwrap_err().to_string();
        assert!(error.contains("the key-value cache holds"), "{error}");
        cache.reset();
        assert!(cache.is_empty());
        let whole = model.forward(&ids, ForwardOptions::all()).unwrap();
        assert_close(&in_pieces(&model, &ids, &[2, 4], &mut cache), &whole, 1e-5);
    }
}

#[test]
fn a_failed_pass_leaves_the_cache_as_it_was() {
    for model in tiny_models(DType::F32) {
        let ids = token_ids(1, 8, 40);
        let whole = model.forward(&ids, ForwardOptions::all()).unwrap();
        let mut cache = model.new_cache();
        in_pieces(&model, &ids, &[4], &mut cache);
        let unknown = Tensor::new(&[[1u32, 40]], &Device::Cpu).unwrap();
        assert!(model.forward(&unknown, ForwardOptions::all().with_cache(&mut cache)).is_err());
        let columns = Tensor::new(&[5u32], &Device::Cpu).unwrap();
        let past_the_end = ForwardOptions::at(columns).with_cache(&mut cache);
        assert!(model.forward(&ids.narrow(1, 4, 2).unwrap(), past_the_end).is_err());
        assert_eq!(cache.len(), 4);
        let rest = in_pieces(&model, &ids, &[2, 2], &mut cache);
        assert_close(&rest, &whole.narrow(1, 4, 4).unwrap(), 1e-5);
    }
}

#[test]
fn sequences_end_where_the_positions_end() {
    for model in tiny_models(DType::F32) {
        let error = model.forward(&token_ids(1, 33, 40), ForwardOptions::all()).unwrap_err().to_string();
        assert!(error.contains("33 tokens") && error.contains("32 positions"), "{error}");
        let mut cache = model.new_cache();
        in_pieces(&model, &token_ids(1, 32, 40), &[30, 2], &mut cache);
        let next = ForwardOptions::all().with_cache(&mut cache);
        let error = model.forward(&token_ids(1, 1, 40), next).unwrap_err().to_string();
        assert!(error.contains("32 cached and 1 new") && error.contains("32 positions"), "{error}");
        assert_eq!(cache.len(), 32);
    }
}

#[test]
fn the_cache_of_a_smaller_model_is_refused() {
    let mut config = tiny_llama_config();
    config.num_hidden_layers = 1;
    let mut cache = Llama::new(config, NamedWeights::builder(DType::F32)).unwrap().new_cache();
    let model = Llama::new(tiny_llama_config(), NamedWeights::builder(DType::F32)).unwrap();
    let error =
        model.forward(&token_ids(1, 3, 40), ForwardOptions::all().with_cache(&mut cache)).unwrap_err().to_string();
    assert!(error.contains("1 layers"), "{error}");
}

#[test]
fn a_pass_with_a_cache_is_inference() {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let model = Llama::new(tiny_llama_config(), vb).unwrap();
    let ids = token_ids(1, 3, 40);
    let mut cache = model.new_cache();
    assert!(model.forward(&ids, ForwardOptions::all()).unwrap().track_op());
    assert!(!model.forward(&ids, ForwardOptions::all().with_cache(&mut cache)).unwrap().track_op());
}
