//! Fresh adapters against those PEFT makes from the same seed.

use candle_core::{DType, Device, Tensor};
use peft_core::nn::Linear;
use peft_core::{ModuleNames, PeftModel, TargetSpec, adaptable};
use peft_testkit::assert::assert_same;
use peft_testkit::fixture::tensors;
use peft_vera::VeraConfig;
use std::path::Path;

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
    layers: Vec<Block>,
}
struct Llama {
    model: Body,
}
adaptable!(Attention { q_proj });
adaptable!(Mlp { down_proj });
adaptable!(Block { self_attn, mlp });
adaptable!(Body { layers });
adaptable!(Llama { model });

/// The adapted modules of the fixture's model; their values play no part.
fn base(dtype: DType) -> Llama {
    let weight = |shape: (usize, usize)| Linear::new(Tensor::ones(shape, dtype, &Device::Cpu).unwrap(), None);
    let block =
        || Block { self_attn: Attention { q_proj: weight((32, 32)) }, mlp: Mlp { down_proj: weight((32, 64)) } };
    Llama { model: Body { layers: vec![block(), block()] } }
}

#[test]
fn equal_seeds_give_the_adapter_of_peft_bit_for_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let made = tensors(folder.join("init.safetensors")).unwrap();
    for (name, dtype) in
        [("float32", DType::F32), ("float64", DType::F64), ("bfloat16", DType::BF16), ("float16", DType::F16)]
    {
        for (start, init_weights) in [("identity", true), ("random", false)] {
            let mut config = VeraConfig::new(TargetSpec::new(ModuleNames::list(["q_proj", "down_proj"])));
            (config.r, config.projection_prng_key, config.init_weights) = (5, 7, init_weights);
            let mut model = PeftModel::new(base(dtype)).with_init_seed(3);
            let adapter = model.add_adapter("default", config).unwrap();
            let prefix = format!("{name}/{start}/");
            let expected = made.iter().filter(|(key, _)| key.starts_with(&prefix)).count();
            assert_eq!((adapter.params.persisted().count(), expected), (10, 10), "{prefix}");
            for (key, tensor) in adapter.params.persisted() {
                let key = format!("{prefix}{key}");
                assert_same(&key, tensor, &made[&key]);
            }
        }
    }
}

/// Phi is the one model type whose usual targets are not LoRA's.
#[test]
fn a_config_without_targets_adapts_what_peft_adapts() {
    struct Phi {
        q_proj: Linear,
        v_proj: Linear,
        fc1: Linear,
    }
    adaptable!(Phi: "phi" { q_proj, v_proj, fc1 });
    let weight = || Linear::new(Tensor::ones((4, 4), DType::F32, &Device::Cpu).unwrap(), None);
    let mut model = PeftModel::new(Phi { q_proj: weight(), v_proj: weight(), fc1: weight() });
    let adapter = model.add_adapter("default", VeraConfig::default()).unwrap();
    assert_eq!(adapter.sites.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["q_proj", "v_proj"]);
}
