//! Decoding with a key-value cache gives what a full pass gives.

use crate::support::{NamedWeights, assert_close, tiny_llama_config, tiny_models, token_ids};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use peft_models::{CausalLanguageModel, Extension, ForwardOptions, KvCache, Llama};

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

/// The bits of logits.
fn bits(logits: &Tensor) -> Vec<u32> {
    let logits = logits.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn passes_with_a_cache_give_the_same_bits_in_any_pieces_and_beside_any_others() {
    for model in [DType::F32, DType::BF16].into_iter().flat_map(tiny_models) {
        let ids = token_ids(3, 20, 40);
        let whole = in_pieces(&model, &ids, &[20], &mut model.new_cache());
        for pieces in [&[1; 20][..], &[7, 1, 1, 1, 1, 9], &[3, 5, 12]] {
            assert_eq!(bits(&in_pieces(&model, &ids, pieces, &mut model.new_cache())), bits(&whole));
        }
        for row in 0..3 {
            let alone = in_pieces(&model, &ids.narrow(0, row, 1).unwrap(), &[4, 16], &mut model.new_cache());
            assert_eq!(bits(&alone), bits(&whole.narrow(0, row, 1).unwrap()));
        }
    }
}

#[test]
fn sequences_of_any_lengths_go_on_together() {
    for model in tiny_models(DType::F32) {
        let ids = token_ids(3, 20, 40);
        let whole = in_pieces(&model, &ids, &[20], &mut model.new_cache());
        let mut cache = model.new_cache();
        let sequences = [cache.add(), cache.add(), cache.add()];
        let copied = cache.fork(sequences[1]).unwrap();
        assert_eq!(cache.len_of(copied).unwrap(), 0);
        for lengths in [[5, 1, 9], [1, 0, 1], [0, 12, 10], [14, 7, 0]] {
            let past = sequences.map(|sequence| cache.len_of(sequence).unwrap());
            let parts = (0..3).map(|row| ids.get(row).unwrap().narrow(0, past[row], lengths[row]).unwrap());
            let input = Tensor::cat(&parts.collect::<Vec<_>>(), 0).unwrap().unsqueeze(0).unwrap();
            let extensions: Vec<_> = (0..3)
                .filter(|row| lengths[*row] > 0)
                .map(|row| Extension { sequence: sequences[row], tokens: lengths[row] })
                .collect();
            let all = model.forward(&input, ForwardOptions::all().with_sequences(&mut cache, &extensions)).unwrap();
            assert_eq!(all.dims(), [1, lengths.iter().sum(), 40]);
            let expected = (0..3).map(|row| whole.get(row).unwrap().narrow(0, past[row], lengths[row]).unwrap());
            let expected = Tensor::cat(&expected.collect::<Vec<_>>(), 0).unwrap();
            assert_eq!(bits(&all), bits(&expected));
        }
        assert_eq!(sequences.map(|sequence| cache.len_of(sequence).unwrap()), [20; 3]);

        // The last tokens alone, in the order of the extensions.
        cache.reset();
        let sequences = [cache.add(), cache.add()];
        let input = Tensor::cat(&[ids.get(2).unwrap().narrow(0, 0, 4).unwrap(), ids.get(0).unwrap()], 0).unwrap();
        let extensions =
            [(sequences[1], 4), (sequences[0], 20)].map(|(sequence, tokens)| Extension { sequence, tokens });
        let options = ForwardOptions::last().with_sequences(&mut cache, &extensions);
        let last = model.forward(&input.unsqueeze(0).unwrap(), options).unwrap();
        let expected = [whole.get(2).unwrap().get(3).unwrap(), whole.get(0).unwrap().get(19).unwrap()];
        assert_eq!((last.dims(), bits(&last)), (&[1, 2, 40][..], bits(&Tensor::cat(&expected, 0).unwrap())));
    }
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    for model in tiny_models(DType::F32) {
        let mut cache = model.new_cache();
        let sequence = cache.add();
        let extend = |tokens| [Extension { sequence, tokens }];
        let mut refuse = |ids: &Tensor, tokens: usize, padding: Option<Tensor>| {
            let options = ForwardOptions::all().with_sequences(&mut cache, &extend(tokens));
            let options = match padding {
                Some(is_token) => options.with_padding(is_token),
                None => options,
            };
            model.forward(ids, options).unwrap_err().to_string()
        };
        assert!(refuse(&token_ids(1, 33, 40), 33, None).contains("position 32"));
        assert!(refuse(&token_ids(1, 3, 40), 2, None).contains("2 tokens of sequences"));
        assert!(refuse(&token_ids(2, 2, 40), 4, None).contains("4 tokens of sequences"));
        let is_token = Tensor::new(&[[1u32, 0]], &Device::Cpu).unwrap();
        assert!(refuse(&token_ids(1, 2, 40), 2, Some(is_token)).contains("without padding"));
        assert_eq!(cache.len_of(sequence).unwrap(), 0);
        let gone = cache.add();
        cache.remove(gone);
        let options = [Extension { sequence: gone, tokens: 1 }];
        let options = ForwardOptions::all().with_sequences(&mut cache, &options);
        assert!(model.forward(&token_ids(1, 1, 40), options).is_err());
    }
}
