//! The order of modules is a promise: adapters seed and tie by it.

use crate::support::tiny_models;
use candle_core::DType;
use peft_core::{Adaptable, HostKind, HostRole, Walk, WalkMut};

const LLAMA: &[&str] = &[
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.gate_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.0.input_layernorm",
    "model.layers.0.post_attention_layernorm",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.mlp.down_proj",
    "model.layers.1.input_layernorm",
    "model.layers.1.post_attention_layernorm",
    "model.norm",
    "lm_head",
];

const GPT2: &[&str] = &[
    "transformer.wte",
    "transformer.wpe",
    "transformer.h.0.ln_1",
    "transformer.h.0.attn.c_attn",
    "transformer.h.0.attn.c_proj",
    "transformer.h.0.ln_2",
    "transformer.h.0.mlp.c_fc",
    "transformer.h.0.mlp.c_proj",
    "transformer.h.1.ln_1",
    "transformer.h.1.attn.c_attn",
    "transformer.h.1.attn.c_proj",
    "transformer.h.1.ln_2",
    "transformer.h.1.mlp.c_fc",
    "transformer.h.1.mlp.c_proj",
    "transformer.ln_f",
    "lm_head",
];

/// As `named_modules()` lists the leaves of transformers' models.
#[test]
fn modules_come_in_pytorchs_order() {
    for (mut model, order) in tiny_models(DType::F32).into_iter().zip([LLAMA, GPT2]) {
        let (mut seen, mut seen_mut) = (vec![], vec![]);
        let mut see = |path: &str, _: &dyn peft_core::Host| {
            seen.push(path.to_owned());
            Ok(())
        };
        model.visit(&mut Walk::new(&mut see)).unwrap();
        let mut see_mut = |path: &str, _: &mut dyn peft_core::Host| {
            seen_mut.push(path.to_owned());
            Ok(())
        };
        model.visit_mut(&mut WalkMut::new(&mut see_mut)).unwrap();
        assert_eq!(seen, order);
        assert_eq!(seen_mut, order);
    }
}

#[test]
fn the_two_ends_are_marked() {
    for (model, model_type) in tiny_models(DType::F32).into_iter().zip(["llama", "gpt2"]) {
        assert_eq!(model.model_type(), Some(model_type));
        let mut ends = vec![];
        let mut see = |path: &str, host: &dyn peft_core::Host| {
            match host.spec().role {
                HostRole::InputEmbedding => ends.push((path.to_owned(), HostKind::Embedding)),
                HostRole::OutputHead => ends.push((path.to_owned(), HostKind::Linear)),
                _ => return Ok(()),
            }
            assert_eq!(host.spec().kind, ends.last().unwrap().1);
            Ok(())
        };
        model.visit(&mut Walk::new(&mut see)).unwrap();
        let embedding = if model_type == "llama" { "model.embed_tokens" } else { "transformer.wte" };
        assert_eq!(ends.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), [embedding, "lm_head"]);
    }
}
