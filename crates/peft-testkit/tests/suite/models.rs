//! The models that other tests stand on.

use candle_core::DType;
use peft_core::{Adaptable, PeftModel, Walk};
use peft_testkit::assert::{assert_relatively_close, assert_same};
use peft_testkit::skeleton::Skeleton;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use proptest::prelude::*;

fn paths(model: &dyn Adaptable) -> Vec<String> {
    let mut paths = vec![];
    let mut each = |path: &str, _: &dyn peft_core::Host| {
        paths.push(path.to_owned());
        Ok(())
    };
    model.visit(&mut Walk::new(&mut each)).unwrap();
    paths
}

#[test]
fn hosts_are_visited_in_order() {
    let model = TinySpec { layers: 1, ..TinySpec::default() }.build().unwrap();
    let expected = [
        "model.embed_tokens",
        "model.layers.0.input_layernorm",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.norm",
        "lm_head",
    ];
    assert_eq!(paths(&model), expected);
    let llama = paths(&Skeleton::llama(2).unwrap());
    assert_eq!(llama.len(), 1 + 2 * 9 + 2);
    assert_eq!(llama[1], "model.layers.0.self_attn.q_proj");
    assert_eq!(llama.last().unwrap(), "lm_head");
}

#[test]
fn tied_models_share_one_weight() {
    let count = |tied| {
        let model = TinySpec { tied, ..TinySpec::default() }.build().unwrap();
        PeftModel::new(model).param_counts().unwrap().total
    };
    assert_eq!(count(false) - count(true), 11 * 6);
}

proptest! {
    #![proptest_config(strategy::config(24))]

    #[test]
    fn equal_specs_build_equal_models(spec in strategy::spec()) {
        let ids = spec.ids().unwrap();
        let logits = || spec.build().unwrap().forward(&ids).unwrap();
        assert_same("the logits", &logits(), &logits());
        let shape = logits().dims().to_vec();
        prop_assert_eq!(shape, [2, 4, spec.vocab]);
        prop_assert!(!logits().track_op());
    }

    #[test]
    fn seeds_and_dtypes_matter(spec in strategy::spec()) {
        let ids = spec.ids().unwrap();
        let logits = |spec: &TinySpec| spec.build().unwrap().forward(&ids).unwrap().to_dtype(DType::F64).unwrap();
        let wide = logits(&TinySpec { dtype: DType::F64, ..spec.clone() });
        let single = logits(&TinySpec { dtype: DType::F32, ..spec.clone() });
        assert_relatively_close("the logits in f32", &single, &wide, 1e-4);
        let other = logits(&TinySpec { dtype: DType::F64, seed: spec.seed + 1, ..spec });
        prop_assert!(peft_testkit::assert::check_same("", &other, &wide).is_err());
    }
}
