//! Layers that share one weight.

use crate::methods::Bottleneck;
use crate::support::{bits, logits, named, on, stir, weight};
use peft_core::{Error, PeftModel};
use peft_testkit::assert::assert_close;
use peft_testkit::tiny::{TinyModel, TinySpec};

fn tied(target: &str) -> PeftModel<TinyModel> {
    let mut model = on(&TinySpec { tied: true, ..TinySpec::default() });
    model.add_adapter("default", Bottleneck::on(named(&[target]))).unwrap();
    stir(&model, 1);
    model
}

#[test]
fn merging_into_one_of_two_is_refused_until_they_are_untied() {
    for (target, path, other) in
        [("embed_tokens", "model.embed_tokens", "lm_head"), ("lm_head", "lm_head", "model.embed_tokens")]
    {
        let mut model = tied(target);
        let before = logits(&model);
        match model.merge().unwrap_err() {
            Error::TiedWeights { path: at, other: with } => assert_eq!((at.as_str(), with.as_str()), (path, other)),
            error => panic!("{error}"),
        }
        assert_eq!(bits(&logits(&model)), bits(&before));
        model.untie().unwrap();
        assert_eq!(bits(&logits(&model)), bits(&before));
        let shared = bits(&weight(&model, other));
        model.merge().unwrap();
        assert_close(target, &logits(&model), &before, 1e-5);
        assert_eq!(bits(&weight(&model, other)), shared, "the other layer keeps its weight");
        assert_ne!(bits(&weight(&model, path)), shared);
        model.unmerge().unwrap();
        assert_eq!(bits(&logits(&model)), bits(&before));
    }
}

#[test]
fn other_layers_of_a_tied_model_merge_freely() {
    let mut model = tied("up_proj");
    let before = logits(&model);
    model.merge().unwrap();
    assert_close("merged", &logits(&model), &before, 1e-5);
}

#[test]
fn adapting_one_of_two_leaves_the_other_alone() {
    let mut model = tied("lm_head");
    let plain = on(&TinySpec { tied: true, ..TinySpec::default() });
    assert_eq!(bits(&weight(&model, "model.embed_tokens")), bits(&weight(&plain, "model.embed_tokens")));
    model.disable().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&plain)));
}

#[test]
fn a_shared_weight_counts_once() {
    let mut model = tied("up_proj");
    let shared = model.param_counts().unwrap().total;
    model.untie().unwrap();
    assert_eq!(model.param_counts().unwrap().total, shared + 11 * 6);
}
