//! Blocks that are computed again instead of kept.

use crate::allocations::allocated;
use crate::support::{NamedWeights, assert_close, tiny_gpt2_config, tiny_llama_config, tiny_models, token_ids};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use peft_core::{ModuleNames, PeftModel, TargetSpec};
use peft_models::{CausalLanguageModel, CausalLm, Checkpointing, ForwardOptions, Gpt2, Llama};
use peft_tinylora::{TinyLoraConfig, TinyLoraInit};

const WAYS: [Checkpointing; 5] = [
    Checkpointing::None,
    Checkpointing::EveryBlock,
    Checkpointing::Every(2),
    Checkpointing::Every(3),
    Checkpointing::First(2),
];

/// A tiny Llama and a tiny GPT-2 of three blocks, all of whose weights are trained.
fn trained(dtype: DType) -> [(CausalLm, VarMap); 2] {
    let (mut llama, mut gpt2) = (tiny_llama_config(), tiny_gpt2_config());
    (llama.num_hidden_layers, gpt2.n_layer) = (3, 3);
    let weights = [VarMap::new(), VarMap::new()];
    let builder = |map| VarBuilder::from_varmap(map, dtype, &Device::Cpu);
    let llama = Llama::new(llama, builder(&weights[0])).unwrap();
    let gpt2 = Gpt2::new(gpt2, builder(&weights[1])).unwrap();
    let [first, second] = weights;
    for (name, var) in first.data().lock().unwrap().iter().chain(second.data().lock().unwrap().iter()) {
        let value = NamedWeights { stdev: 0.3 }.tensor(name, var.shape());
        var.set(&value.to_dtype(dtype).unwrap()).unwrap();
    }
    [(llama.into(), first), (gpt2.into(), second)]
}

fn options(checkpointing: Checkpointing) -> ForwardOptions<'static> {
    // Padding between tokens, so that positions and mask differ by row.
    let is_token = Tensor::new(&[[1u32, 1, 0, 1, 1], [0, 1, 1, 1, 1]], &Device::Cpu).unwrap();
    ForwardOptions::all().with_padding(is_token).with_checkpointing(checkpointing)
}

fn loss(model: &dyn CausalLanguageModel, checkpointing: Checkpointing) -> Tensor {
    let logits = model.forward(&token_ids(2, 5, 40), options(checkpointing)).unwrap();
    logits.tanh().unwrap().sqr().unwrap().mean_all().unwrap()
}

#[test]
fn every_weight_gets_the_gradient_that_it_gets_without() {
    for (model, weights) in trained(DType::F64) {
        let plain = loss(&model, Checkpointing::None);
        let expected = plain.backward().unwrap();
        for way in WAYS {
            let checkpointed = loss(&model, way);
            assert_eq!(checkpointed.to_scalar::<f64>().unwrap(), plain.to_scalar::<f64>().unwrap());
            for grads in [checkpointed.backward().unwrap(), peft_nn::backward(&checkpointed).unwrap()] {
                for (name, var) in weights.data().lock().unwrap().iter() {
                    let grad = grads.get(var).unwrap_or_else(|| panic!("{name} got no gradient with {way:?}"));
                    assert_close(grad, expected.get(var).unwrap(), 1e-14);
                }
            }
        }
    }
}

/// An adapter with one vector for all blocks, and masks that the second run must repeat.
#[test]
fn an_adapter_shared_by_all_blocks_and_with_dropout_too() {
    for model in tiny_models(DType::F64) {
        let mut model = PeftModel::new(model);
        let mut config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear()))
            .with_u(3)
            .with_weight_tying(1.0)
            .with_init_weights(TinyLoraInit::Uniform);
        config.tinylora_dropout = 0.4;
        model.add_adapter("a", config).unwrap();
        let run = |seed, way| {
            model.reseed(seed).unwrap();
            let loss = loss(model.base(), way);
            // Other masks between forward and backward.
            model.reseed(99).unwrap();
            let grads = peft_nn::backward(&loss).unwrap();
            model.audit_gradients(&grads).unwrap();
            grads.get(&model.vars()[0]).unwrap().clone()
        };
        let expected = run(1, Checkpointing::None);
        assert!(crate::support::max_diff(&expected, &run(2, Checkpointing::None)) > 1e-9, "masks do not matter");
        for way in WAYS {
            assert_close(&run(1, way), &expected, 1e-12);
        }
        model.eval().unwrap();
        assert!(!loss(model.base(), Checkpointing::EveryBlock).track_op(), "inference builds no graph");
    }
}

#[test]
fn a_graph_is_of_the_model_as_it_was() {
    let [model, _] = tiny_models(DType::F64);
    let mut model = PeftModel::new(model);
    let config =
        TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_init_weights(TinyLoraInit::Uniform);
    model.add_adapter("a", config).unwrap();
    let expected = peft_nn::backward(&loss(model.base(), Checkpointing::EveryBlock)).unwrap();
    let before = loss(model.base(), Checkpointing::EveryBlock);
    let vars = model.vars();
    model.eval().unwrap();
    let grads = peft_nn::backward(&before).unwrap();
    for var in vars {
        assert_close(grads.get(&var).unwrap(), expected.get(&var).unwrap(), 0.0);
    }
}

/// A Llama and a GPT-2 that are large enough for tensors to outweigh everything else.
fn medium(dtype: DType) -> [(CausalLm, VarMap); 2] {
    let (mut llama, mut gpt2) = (tiny_llama_config(), tiny_gpt2_config());
    (llama.num_hidden_layers, llama.hidden_size, llama.intermediate_size) = (6, 64, 176);
    (llama.head_dim, llama.attention_bias, llama.mlp_bias, llama.max_position_embeddings) =
        (Some(16), false, false, 256);
    (gpt2.n_layer, gpt2.n_embd, gpt2.n_head, gpt2.n_positions) = (6, 64, 4, 256);
    let weights = [VarMap::new(), VarMap::new()];
    let builder = |map| VarBuilder::from_varmap(map, dtype, &Device::Cpu);
    let llama = Llama::new(llama, builder(&weights[0])).unwrap();
    let gpt2 = Gpt2::new(gpt2, builder(&weights[1])).unwrap();
    let [first, second] = weights;
    [(llama.into(), first), (gpt2.into(), second)]
}

#[test]
fn the_estimate_of_what_is_kept_is_near_what_is() {
    for dtype in [DType::F32, DType::BF16] {
        for (model, _weights) in medium(dtype) {
            let ids = token_ids(2, 128, 40);
            let estimate = model.activations(2, 128).unwrap();
            let kept = |way| {
                let run = || model.hidden(&ids, ForwardOptions::all().with_checkpointing(way)).unwrap();
                run();
                allocated(run).1 as f64
            };
            let all = kept(Checkpointing::None);
            let inputs = kept(Checkpointing::EveryBlock);
            let block = (all - inputs) / 6.0 + estimate.input as f64;
            let ratio = block / estimate.block as f64;
            assert!((0.9..1.15).contains(&ratio), "{dtype:?}: a block keeps {block} bytes, {ratio} of the estimate");
            // Beside the six inputs: the embeddings, the state after the last block, and its norm.
            let ratio = inputs / (6.0 + 4.0) / estimate.input as f64;
            assert!((0.6..1.15).contains(&ratio), "{dtype:?}: {inputs} bytes of inputs, {ratio} of the estimate");
        }
    }
}

#[test]
fn a_budget_is_kept_to_at_the_peak() {
    for (model, _weights) in medium(DType::F32) {
        let ids = token_ids(2, 128, 40);
        let estimate = model.activations(2, 128).unwrap();
        let step = |way| {
            let run = || {
                let hidden = model.hidden(&ids, ForwardOptions::all().with_checkpointing(way)).unwrap();
                peft_nn::backward_with(&hidden, &hidden.detach()).unwrap();
            };
            run();
            allocated(run).2
        };
        // What a step needs however little it keeps: gradients of weights, and what the operators of a block compute with.
        let all = step(Checkpointing::None);
        let beside = all - estimate.with(Checkpointing::None);
        let mut last = all;
        for blocks in [5, 4, 3, 2] {
            let budget = blocks * estimate.block;
            let way = estimate.within(budget);
            let peak = step(way);
            assert!(peak < last, "{way:?} takes {peak} bytes, and more was kept with {last}");
            assert!(peak <= budget + beside + beside / 4, "{way:?} takes {peak} bytes, {budget} was the budget");
            last = peak;
        }
    }
}
