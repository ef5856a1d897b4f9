//! What modules are called in either format, for every architecture.

use crate::support::{Module, base, base_with, lora};
use peft_export::{Architecture, to_gguf, to_mlx};

const DECODER: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const GPT2: [(&str, &str); 4] =
    [("attn.c_attn", "attn_qkv"), ("attn.c_proj", "attn_output"), ("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")];

#[test]
fn modules_of_blocks_have_the_names_of_each_program() {
    for architecture in Architecture::ALL {
        let gpt2 = architecture == Architecture::Gpt2;
        let (modules, list, mlx_list) = match gpt2 {
            true => (&GPT2[..], "transformer.h", "model.h"),
            false => (&DECODER[..], "model.layers", "model.layers"),
        };
        let paths: Vec<String> = modules.iter().map(|(name, _)| format!("{list}.2.{name}")).collect();
        let adapter = lora(&paths.iter().map(|path| (path.as_str(), 8, 4, 2)).collect::<Vec<Module<'_>>>());
        let base = base(architecture.model_type());

        let mlx = to_mlx(&adapter, &base).unwrap();
        let gguf = to_gguf(&adapter, &base).unwrap();
        for (name, gguf_name) in modules {
            for factor in ["lora_a", "lora_b"] {
                let key = format!("{mlx_list}.2.{name}.{factor}");
                assert!(mlx.tensors.contains_key(&key), "{architecture}: {key}");
                let key = format!("blk.2.{gguf_name}.weight.{factor}");
                assert!(gguf.tensors.contains_key(&key), "{architecture}: {key}");
            }
        }
        assert_eq!((mlx.tensors.len(), gguf.tensors.len()), (2 * modules.len(), 2 * modules.len()));
        assert_eq!(mlx.num_layers, 1);
        let expected = if architecture == Architecture::Mistral { "llama" } else { architecture.model_type() };
        assert_eq!(gguf.architecture, expected);
    }
}

#[test]
fn gpt2_has_its_own_names_for_the_ends() {
    let adapter = lora(&[("transformer.wpe", 9, 4, 2)]);
    let mlx = to_mlx(&adapter, &base("gpt2")).unwrap();
    assert_eq!(mlx.tensors.keys().collect::<Vec<_>>(), ["model.wpe.lora_a", "model.wpe.lora_b"]);
    let adapter = lora(&[("transformer.wte", 9, 4, 2), ("lm_head", 9, 4, 2)]);
    let gguf = to_gguf(&adapter, &base("gpt2")).unwrap();
    let names =
        ["output.weight.lora_a", "output.weight.lora_b", "token_embd.weight.lora_a", "token_embd.weight.lora_b"];
    assert_eq!(gguf.tensors.keys().collect::<Vec<_>>(), names);
}

#[test]
fn keys_and_values_have_as_many_heads_as_queries_unless_the_config_says_so() {
    let base = base_with("llama", |config| {
        config.as_object_mut().unwrap().remove("num_key_value_heads");
    });
    assert_eq!((base.heads, base.kv_heads), (4, 4));
}
