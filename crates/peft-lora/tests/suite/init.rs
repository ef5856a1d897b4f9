//! Fresh factors against those PEFT draws from the same seed.

use candle_core::{Device, Tensor};
use peft_core::nn::{Embedding, Linear};
use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable};
use peft_lora::{LoraConfig, LoraInit};
use peft_testkit::assert::assert_close;
use std::collections::HashMap;

struct Attention {
    q_proj: Linear,
}
struct Mlp {
    down_proj: Linear,
}
struct Block {
    self_attn: Attention,
    mlp: Mlp,
}
struct Body {
    embed_tokens: Embedding,
    layers: Vec<Block>,
}
struct Llama {
    model: Body,
}
adaptable!(Attention { q_proj });
adaptable!(Mlp { down_proj });
adaptable!(Block { self_attn, mlp });
adaptable!(Body { embed_tokens, layers });
adaptable!(Llama { model });

/// The adapted modules of the fixture's model, with its weights.
fn base() -> Llama {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/base_llama/model.safetensors");
    let weights = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let weight = |name: String| weights[&name].clone();
    let layers = (0..2).map(|i| Block {
        self_attn: Attention { q_proj: Linear::new(weight(format!("model.layers.{i}.self_attn.q_proj.weight")), None) },
        mlp: Mlp { down_proj: Linear::new(weight(format!("model.layers.{i}.mlp.down_proj.weight")), None) },
    });
    Llama {
        model: Body {
            embed_tokens: Embedding::new(weight("model.embed_tokens.weight".into())),
            layers: layers.collect(),
        },
    }
}

/// What PEFT drew, and what is made here from the same seed.
fn fresh(case: &str, set: impl FnOnce(&mut LoraConfig)) -> Vec<(String, Tensor, Tensor)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/init.safetensors");
    let drawn: HashMap<String, Tensor> = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let mut config =
        LoraConfig::with_rank(3, TargetSpec::new(ModuleNames::list(["embed_tokens", "q_proj", "down_proj"])));
    config.lora_alpha = 8.0;
    set(&mut config);
    let mut model = PeftModel::new(base()).with_init_seed(3);
    let adapter = model.add_adapter("default", config).unwrap();
    let ours = adapter.params.persisted().filter(|(key, _)| key.to_string().contains("lora_"));
    ours.map(|(key, tensor)| (key.to_string(), tensor.clone(), drawn[&format!("{case}/{key}")].clone())).collect()
}

fn linear_only(config: &mut LoraConfig) {
    config.targets = TargetSpec::new(ModuleNames::list(["q_proj", "down_proj"]));
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn equal_seeds_give_the_factors_of_peft_bit_for_bit() {
    type Set = fn(&mut LoraConfig);
    let cases: [(&str, usize, Set); 5] = [
        ("identity", 10, |_| ()),
        ("gaussian", 10, |c| c.init_lora_weights = LoraInit::Gaussian),
        ("random", 10, |c| c.init_lora_weights = LoraInit::Random),
        ("bias", 12, |c| {
            linear_only(c);
            c.init_lora_weights = LoraInit::Random;
            c.lora_bias = true;
        }),
        ("zero_bias", 12, |c| {
            linear_only(c);
            c.lora_bias = true;
        }),
    ];
    for (case, count, set) in cases {
        let compared = fresh(case, set);
        assert_eq!(compared.len(), count, "{case}");
        for (key, ours, theirs) in compared {
            assert_eq!(bits(&ours), bits(&theirs), "{case}: {key}");
        }
    }
}

#[test]
fn magnitudes_are_those_of_peft() {
    let compared = fresh("dora", |config| {
        config.init_lora_weights = LoraInit::Random;
        config.use_dora = true;
    });
    assert_eq!(compared.len(), 15);
    for (key, ours, theirs) in compared {
        // Norms of up to 35, which PEFT sums in f32.
        assert_close(&key, &ours, &theirs, if key.contains("magnitude") { 1e-5 } else { 0.0 });
    }
}

#[test]
fn parts_of_the_weight_are_those_that_peft_takes() {
    // Singular vectors and the columns of an orthonormal factor are free in sign: compare what the two factors make. In f32 they
    // are determined up to the rounding times the largest singular value over the gap to the next, here 0.009.
    for (case, init) in [("pissa", LoraInit::Pissa), ("olora", LoraInit::Olora)] {
        let compared = fresh(case, |config| {
            linear_only(config);
            config.init_lora_weights = init;
        });
        assert_eq!(compared.len(), 8);
        for (key, a, their_a) in compared.iter().filter(|(key, ..)| key.ends_with("lora_A.weight")) {
            let (_, b, their_b) =
                compared.iter().find(|(other, ..)| *other == key.replace("lora_A", "lora_B")).unwrap();
            assert_close(key, &b.matmul(a).unwrap(), &their_b.matmul(their_a).unwrap(), 1e-4);
        }
    }
}
