//! What cannot be combined, and what is said of it.

use super::{SVD, add, lora, model, tiny};
use peft_core::Error;
use peft_lora::{Combination, LoraBias, LoraConfig, WeightedAdapter, add_weighted_adapter, combine};
use peft_testkit::assert::assert_same;
use peft_testkit::tiny::TinySpec;

/// What a combination says of these adapters.
fn refusal(configs: &[LoraConfig], weights: &[f64], by: Combination) -> String {
    let mut model = tiny(configs);
    let error = add(&mut model, weights, by).unwrap_err();
    assert_eq!(model.adapters().len(), configs.len());
    error.to_string()
}

#[test]
fn what_cannot_be_combined_is_refused() {
    let plain = lora(2, &["up_proj"]);
    let with_bias = |bias| {
        let mut config = plain.clone();
        config.bias = bias;
        config
    };
    let mut saving = plain.clone();
    saving.targets.modules_to_save = Some(vec!["lm_head".into()]);
    let mut dora = plain.clone();
    dora.use_dora = true;
    let mut lora_bias = plain.clone();
    lora_bias.lora_bias = true;
    let mut patterned = lora(1, &["up_proj", "down_proj"]);
    patterned.rank_pattern.insert("down_proj".into(), 2);
    for (configs, weights, by, says) in [
        (vec![], vec![], SVD, "cannot combine adapters: there are none"),
        (vec![plain.clone()], vec![f64::NAN], SVD, "cannot combine adapters: `0` has the weight NaN"),
        (vec![plain.clone()], vec![f64::NEG_INFINITY], SVD, "the weight -inf"),
        (
            vec![plain.clone(), with_bias(LoraBias::All)],
            vec![1.0, 1.0],
            SVD,
            "cannot combine adapters: `1` trains biases",
        ),
        (vec![with_bias(LoraBias::LoraOnly)], vec![1.0], Combination::Cat, "`bias` must be \"none\""),
        (
            vec![plain.clone(), saving],
            vec![1.0, 1.0],
            Combination::Cat,
            "`1` brings a module saved as a whole, `lm_head`",
        ),
        (
            vec![plain.clone(), lora(3, &["up_proj"])],
            vec![1.0, 1.0],
            Combination::Linear,
            "`linear` needs equal ranks, not [2, 3]",
        ),
        (
            vec![plain.clone(), lora(3, &["lm_head"])],
            vec![1.0, 1.0],
            Combination::Linear,
            "`linear` needs equal ranks, not [2, 3]",
        ),
        (
            vec![plain.clone(), patterned],
            vec![1.0, 1.0],
            Combination::Linear,
            "model.layers.0.mlp.up_proj: cannot combine adapters: `linear` needs equal ranks, not [2, 1]",
        ),
        (vec![plain.clone()], vec![1.0], Combination::Svd { rank: Some(0), clamp: None }, "must be positive"),
    ] {
        let error = refusal(&configs, &weights, by);
        assert!(error.contains(says), "`{says}` is not in: {error}");
    }
}

#[test]
fn names_are_checked_before_anything_is_computed() {
    let mut model = tiny(&[lora(2, &["up_proj"])]);
    let ids = TinySpec::default().ids().unwrap();
    let before = model.base().forward(&ids).unwrap();
    let both = [("0", 1.0), ("1", 1.0)];
    assert!(
        matches!(add_weighted_adapter(&mut model, "0", &both, SVD), Err(Error::DuplicateAdapter(name)) if name == "0")
    );
    assert!(
        matches!(add_weighted_adapter(&mut model, "new", &both, SVD), Err(Error::UnknownAdapter { name, .. }) if name == "1")
    );
    assert!(matches!(add_weighted_adapter(&mut model, "a.b", &both[..1], SVD), Err(Error::AdapterName(_))));
    model.merge().unwrap();
    assert!(matches!(add_weighted_adapter(&mut model, "new", &both[..1], SVD), Err(Error::Merged { .. })));
    model.unmerge().unwrap();
    assert_eq!((model.adapters().len(), model.active().collect::<Vec<_>>()), (1, vec!["0"]));
    assert_same("logits", &model.base().forward(&ids).unwrap(), &before);
}

/// Adapters of different models have modules of one name and different shapes, or different embeddings.
#[test]
fn adapters_of_different_models_are_told_apart() {
    let detached = |spec: TinySpec, names: &[&str]| model(&spec, &[lora(2, names)]).detached("0").unwrap();
    let both = |one, other| {
        combine(&[WeightedAdapter::new("one", &one, 1.0), WeightedAdapter::new("other", &other, 1.0)], Combination::Cat)
    };
    let wide = TinySpec { inner: 9, ..TinySpec::default() };
    let error =
        both(detached(TinySpec::default(), &["up_proj"]), detached(wide, &["up_proj"])).unwrap_err().to_string();
    for says in ["model.layers.0.mlp.up_proj", "`one` adapts a weight of 8 x 6", "`other` one of 9 x 6"] {
        assert!(error.contains(says), "{error}");
    }
    let embedding = |seed| detached(TinySpec { seed, ..TinySpec::default() }, &["embed_tokens"]);
    let error = both(embedding(1), embedding(2)).unwrap_err().to_string();
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    assert!(error.contains("`one` and `other`") && error.contains(key), "{error}");
    let same = both(embedding(1), embedding(1)).unwrap();
    assert!(same.tensors.contains_key(key));
}
