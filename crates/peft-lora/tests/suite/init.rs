//! Fresh factors against those PEFT draws from the same seed.

use candle_core::{Device, Tensor};
use peft_core::nn::{Embedding, Linear};
use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable};
use peft_lora::{LoraConfig, LoraInit};
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

#[test]
fn equal_seeds_give_the_factors_of_peft_bit_for_bit() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/init.safetensors");
    let drawn: HashMap<String, Tensor> = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    for (case, init) in
        [("identity", LoraInit::Identity), ("gaussian", LoraInit::Gaussian), ("random", LoraInit::Random)]
    {
        let targets = TargetSpec::new(ModuleNames::list(["embed_tokens", "q_proj", "down_proj"]));
        let mut config = LoraConfig::with_rank(3, targets);
        config.init_lora_weights = init;
        let mut model = PeftModel::new(base()).with_init_seed(3);
        let adapter = model.add_adapter("default", config).unwrap();
        let mut compared = 0;
        for (key, tensor) in adapter.params.persisted().filter(|(key, _)| key.to_string().contains("lora_")) {
            let want = &drawn[&format!("{case}/{key}")];
            let bits = |t: &Tensor| {
                t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(tensor), bits(want), "{case}: {key}");
            compared += 1;
        }
        assert_eq!(compared, 10, "{case}");
    }
}
