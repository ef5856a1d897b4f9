//! Fresh vectors against those that PEFT draws from the same seed.

use candle_core::{DType, Tensor};
use peft_core::nn::Linear;
use peft_core::{PeftModel, adaptable};
use peft_ia3::Ia3Config;
use peft_testkit::assert::{assert_same, values};
use peft_testkit::fixture::{root, tensors};

struct Attention {
    k_proj: Linear,
    v_proj: Linear,
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
adaptable!(Attention { k_proj, v_proj });
adaptable!(Mlp { down_proj });
adaptable!(Block { self_attn, mlp });
adaptable!(Body { layers });
adaptable!(Llama: "llama" { model });

/// The modules that IA3 usually adapts in a fixture's model, with its weights.
fn base(name: &str) -> Llama {
    let weights = tensors(root().join(name).join("model.safetensors")).unwrap();
    let linear = |path: String| Linear::new(weights[&format!("{path}.weight")].clone(), None);
    let layers = (0..2).map(|i| Block {
        self_attn: Attention {
            k_proj: linear(format!("model.layers.{i}.self_attn.k_proj")),
            v_proj: linear(format!("model.layers.{i}.self_attn.v_proj")),
        },
        mlp: Mlp { down_proj: linear(format!("model.layers.{i}.mlp.down_proj")) },
    });
    Llama { model: Body { layers: layers.collect() } }
}

fn fresh(name: &str, init_ia3_weights: bool) -> Vec<(String, Tensor)> {
    let mut model = PeftModel::new(base(name)).with_init_seed(3);
    let mut config = Ia3Config::default();
    config.init_ia3_weights = init_ia3_weights;
    let adapter = model.add_adapter("default", config).unwrap();
    adapter.params.persisted().map(|(key, tensor)| (key.to_string(), tensor.clone())).collect()
}

/// On a bf16 base they are rounded to bf16 and kept in f32.
#[test]
fn equal_seeds_give_the_vectors_of_peft_bit_for_bit() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/init.safetensors");
    let drawn = tensors(file).unwrap();
    let mut compared = 0;
    for name in ["base_llama", "base_llama_bf16"] {
        for (key, tensor) in fresh(name, false) {
            assert_same(&format!("{name}: {key}"), &tensor, &drawn[&format!("{name}/{key}")]);
            compared += 1;
        }
    }
    assert_eq!(compared, drawn.len());
}

#[test]
fn vectors_are_ones_of_pefts_shapes_otherwise() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/init.safetensors");
    let drawn = tensors(file).unwrap();
    for name in ["base_llama", "base_llama_bf16"] {
        for (key, tensor) in fresh(name, true) {
            assert_eq!(tensor.dims(), drawn[&format!("{name}/{key}")].dims(), "{name}: {key}");
            assert_eq!(tensor.dtype(), DType::F32, "{name}: {key}");
            assert!(values(&tensor).unwrap().iter().all(|value| *value == 1.0), "{name}: {key}");
        }
    }
}
