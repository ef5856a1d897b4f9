//! Base weights of adapted embeddings that travel with the adapter.

use crate::methods::{Bottleneck, registry};
use crate::support::{bits, logits, named, pattern, saved, stir, tiny, weight, with_bottleneck};
use peft_core::{ModuleNames, PeftModel, TargetSpec};
use peft_testkit::assert::assert_close;
use peft_testkit::tiny::TinyModel;

const EMBEDDING: &str = "base_model.model.model.embed_tokens.base_layer.weight";
const HEAD: &str = "base_model.model.lm_head.base_layer.weight";

fn carried(targets: TargetSpec) -> Vec<String> {
    let model = with_bottleneck(targets);
    saved(&model, "default").into_keys().filter(|key| key.contains("base_layer")).collect()
}

#[test]
fn they_are_written_when_the_config_names_them_outright() {
    assert_eq!(carried(named(&["embed_tokens", "up_proj"])), [EMBEDDING]);
    assert_eq!(carried(named(&["lm_head", "embed_tokens"])), [HEAD, EMBEDDING]);
    assert_eq!(carried(pattern(r".*embed_tokens|.*\.up_proj")), [EMBEDDING]);
    assert_eq!(carried(pattern("lm_head")), [HEAD]);
    // PEFT looks for the bare name in a list.
    assert!(carried(named(&["model.embed_tokens", "up_proj"])).is_empty());
    assert!(carried(named(&["up_proj"])).is_empty());
    assert!(carried(TargetSpec::new(ModuleNames::all_linear())).is_empty());
}

#[test]
fn they_are_no_parameters() {
    let model = with_bottleneck(named(&["embed_tokens"]));
    assert_eq!(model.trainable().len(), 1);
    assert_eq!(bits(&saved(&model, "default")[EMBEDDING]), bits(&weight(&tiny(), "model.embed_tokens")));
}

/// A model with an adapter that was made on a base with another embedding, and that base's logits with the adapter.
fn transplanted() -> (PeftModel<TinyModel>, candle_core::Tensor) {
    let model = with_bottleneck(named(&["embed_tokens", "up_proj"]));
    let mut tensors = saved(&model, "default");
    let shifted = (&tensors[EMBEDDING] + 0.25).unwrap();
    tensors.insert(EMBEDDING.into(), shifted.clone());
    let config = model.adapter("default").unwrap().config.clone();
    // The same base with the other embedding in place, made by loading whole.
    let mut other = tiny();
    let targets = TargetSpec { modules_to_save: Some(vec!["embed_tokens".into()]), ..named(&["up_proj"]) };
    other.add_adapter("whole", Bottleneck::on(targets)).unwrap();
    let (_, var) = other.trainable().into_iter().find(|(name, _)| name.contains("embed_tokens")).unwrap();
    var.set(&shifted).unwrap();
    let mut other = PeftModel::new(other.merge_and_unload().unwrap());
    other.add_from_source("x", config.clone(), &tensors).unwrap();
    let mut loaded = tiny();
    loaded.add_from_source("x", config, &tensors).unwrap();
    (loaded, logits(&other))
}

#[test]
fn they_stand_in_for_the_base_while_their_adapter_is_active() {
    let (mut model, expected) = transplanted();
    assert_eq!(bits(&logits(&model)), bits(&expected));
    model.disable().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
    model.enable().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&expected));
    model.merge().unwrap();
    assert_close("merged", &logits(&model), &expected, 1e-5);
    model.unmerge().unwrap();
    model.delete_adapter("x").unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
}

#[test]
fn they_are_written_again_as_they_were_read() {
    let folder = tempfile::tempdir().unwrap();
    let (model, expected) = transplanted();
    let read = saved(&model, "x");
    model.save_adapter("x", folder.path()).unwrap();
    let mut again = tiny();
    again.load_adapter("x", folder.path(), &registry()).unwrap();
    assert_eq!(bits(&saved(&again, "x")[EMBEDDING]), bits(&read[EMBEDDING]));
    assert_eq!(bits(&logits(&again)), bits(&expected));
}

#[test]
fn one_that_equals_the_base_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_bottleneck(named(&["embed_tokens"]));
    model.save_adapter("default", folder.path()).unwrap();
    let mut loaded = tiny();
    loaded.load_adapter("a", folder.path(), &registry()).unwrap();
    loaded.load_adapter("b", folder.path(), &registry()).unwrap();
    loaded.activate(&["a", "b"]).unwrap();
    assert_eq!(loaded.active().count(), 2);
}

#[test]
fn a_file_without_them_takes_the_base() {
    let model = with_bottleneck(named(&["embed_tokens"]));
    let mut tensors = saved(&model, "default");
    tensors.remove(EMBEDDING).unwrap();
    let mut loaded = tiny();
    loaded.add_from_source("x", model.adapter("default").unwrap().config.clone(), &tensors).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    assert!(!saved(&loaded, "x").contains_key(EMBEDDING));
    stir(&loaded, 1);
}
