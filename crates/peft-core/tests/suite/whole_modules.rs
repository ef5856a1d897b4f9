//! `modules_to_save` and trained biases: parameters of the base model that are trained as they are.

use crate::methods::{Bottleneck, registry};
use crate::support::{Tensors, at, bits, logits, named, saved, stir, tiny, weight, with_adapter};
use peft_core::{Error, PeftModel, TargetSpec};
use peft_testkit::assert::{assert_close, assert_same};
use peft_testkit::tiny::TinyModel;

fn saving(names: &[&str]) -> Bottleneck {
    let targets =
        TargetSpec { modules_to_save: Some(names.iter().map(|n| (*n).to_owned()).collect()), ..named(&["up_proj"]) };
    Bottleneck::on(targets)
}

fn training_bias(mode: &str) -> Bottleneck {
    Bottleneck { bias: mode.into(), ..Bottleneck::on(named(&["up_proj"])) }
}

/// The keys of a checkpoint that are not the method's own, without what they all begin with.
fn whole(model: &PeftModel<TinyModel>) -> Vec<String> {
    let keys = saved(model, "default").into_keys();
    keys.filter(|k| !k.contains("bottleneck_"))
        .map(|k| k.strip_prefix("base_model.model.").unwrap().to_owned())
        .collect()
}

#[test]
fn names_are_plain_suffixes() {
    let model = with_adapter(saving(&["norm"]));
    let expected = [
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.bias",
        "model.norm.weight",
    ];
    assert_eq!(whole(&model), expected);
    assert_eq!(whole(&with_adapter(saving(&["head"]))), ["lm_head.weight"]);
}

#[test]
fn a_composite_module_is_everything_below_it() {
    let targets = TargetSpec { modules_to_save: Some(vec!["0.mlp".into()]), ..named(&["up_proj"]) };
    let model = with_adapter(Bottleneck::on(targets));
    let expected = ["down_proj.bias", "down_proj.weight", "up_proj.bias", "up_proj.weight"];
    assert_eq!(whole(&model), expected.map(|name| format!("model.layers.0.mlp.{name}")));
    let sites: Vec<&str> = model.adapter("default").unwrap().sites.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(sites, ["model.layers.1.mlp.up_proj"], "what is trained whole is not adapted");
}

#[test]
fn copies_start_as_the_base_and_leave_it_alone() {
    let mut model = tiny();
    let base = logits(&model);
    let original = bits(&weight(&model, "lm_head"));
    model.add_adapter("default", saving(&["lm_head", "norm"])).unwrap();
    assert_eq!(bits(&logits(&model)), bits(&base));
    stir(&model, 1);
    assert_ne!(bits(&logits(&model)), bits(&base));
    assert_eq!(bits(&weight(&model, "lm_head")), original);
    model.disable().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&base));
    model.enable().unwrap();
    model.delete_adapter("default").unwrap();
    assert_eq!(bits(&logits(&model)), bits(&base));
}

/// Saves, loads into a fresh model, and compares logits and tensors.
#[track_caller]
fn survives_a_file(config: Bottleneck) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    let model = with_adapter(config);
    model.save_adapter("default", folder.path()).unwrap();
    let mut loaded = tiny();
    loaded.load_adapter("default", folder.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    let (tensors, again) = (saved(&model, "default"), saved(&loaded, "default"));
    assert_eq!(tensors.keys().collect::<Vec<_>>(), again.keys().collect::<Vec<_>>());
    for (key, tensor) in &tensors {
        assert_same(key, &again[key], tensor);
    }
    tensors
}

#[test]
fn they_survive_a_file() {
    survives_a_file(saving(&["norm", "lm_head"]));
    survives_a_file(saving(&["mlp.down_proj"]));
    survives_a_file(training_bias("all"));
    survives_a_file(training_bias("targets"));
}

#[test]
fn they_are_merged_and_taken_out_again() {
    for config in [saving(&["norm", "lm_head", "down_proj"]), training_bias("all")] {
        let mut model = with_adapter(config.clone());
        let separate = logits(&model);
        model.merge().unwrap();
        assert_close("merged", &logits(&model), &separate, 1e-5);
        model.unmerge().unwrap();
        assert_eq!(bits(&logits(&model)), bits(&separate));
        model.activate(&[]).unwrap();
        assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
        let plain = with_adapter(config).merge_and_unload().unwrap();
        assert_close("unloaded", &crate::support::logits_of(&plain), &separate, 1e-5);
    }
}

#[test]
fn biases_are_named_after_what_is_adapted() {
    let adapted = [0, 1].map(|layer| format!("model.layers.{layer}.mlp.up_proj.base_layer.bias"));
    assert_eq!(whole(&with_adapter(training_bias("targets"))), adapted);
    let all = [
        "model.layers.0.mlp.down_proj.bias",
        "model.layers.0.mlp.up_proj.base_layer.bias",
        "model.layers.1.mlp.down_proj.bias",
        "model.layers.1.mlp.up_proj.base_layer.bias",
        "model.norm.bias",
    ];
    assert_eq!(whole(&with_adapter(training_bias("all"))), all);
    assert!(whole(&with_adapter(training_bias("none"))).is_empty());
}

#[test]
fn a_bias_is_saved_once_when_its_module_is_saved_whole() {
    let mut config = saving(&["down_proj"]);
    config.bias = "all".into();
    let keys = whole(&with_adapter(config));
    assert_eq!(keys.iter().filter(|k| k.ends_with("0.mlp.down_proj.bias")).count(), 1);
    assert!(keys.contains(&"model.norm.bias".to_owned()));
}

#[test]
fn switching_off_restores_biases() {
    let mut model = with_adapter(training_bias("all"));
    assert_ne!(bits(&logits(&model)), bits(&logits(&tiny())));
    model.disable().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
    assert!(at(model.base(), "model.norm", |host| host.slots().bias().is_none()));
}

#[test]
fn two_adapters_cannot_replace_one_parameter_at_once() {
    for (config, what, path) in
        [(saving(&["lm_head"]), "weight", "lm_head"), (training_bias("all"), "bias", "model.layers.0.mlp.up_proj")]
    {
        let mut model = tiny();
        model.add_adapter("a", config.clone()).unwrap();
        stir(&model, 1);
        let first = logits(&model);
        model.add_adapter("b", config).unwrap();
        stir(&model, 2);
        let second = logits(&model);
        match model.activate(&["a", "b"]).unwrap_err() {
            Error::ConflictingReplacement { first, second, what: found, path: at } => {
                assert_eq!((first.as_str(), second.as_str(), found, at.as_str()), ("a", "b", what, path));
            }
            error => panic!("{error}"),
        }
        assert_eq!(bits(&logits(&model)), bits(&second), "a refused switch switches nothing");
        model.activate(&["a"]).unwrap();
        assert_eq!(bits(&logits(&model)), bits(&first));
    }
}

#[test]
fn a_missing_or_misshapen_copy_is_refused() {
    let model = with_adapter(saving(&["lm_head"]));
    let config = model.adapter("default").unwrap().config.clone();
    let key = "base_model.model.lm_head.weight";
    let mut tensors = saved(&model, "default");
    let whole = tensors.remove(key).unwrap();
    let error = tiny().add_from_source("x", config.clone(), &tensors).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor(name) if name == key), "{error}");
    tensors.insert(key.into(), whole.t().unwrap().contiguous().unwrap());
    let error = tiny().add_from_source("x", config, &tensors).unwrap_err().to_string();
    assert_eq!(error, format!("`{key}` has shape [6, 11], but the config and the model ask for [11, 6]"));
}

/// PEFT lets such a tensor overwrite the base model.
#[test]
fn a_whole_module_that_the_config_does_not_name_is_refused() {
    let mut model = with_adapter(saving(&["lm_head"]));
    let mut tensors = saved(&model, "default");
    tensors.insert("base_model.model.model.norm.weight".into(), weight(&model, "model.norm"));
    model.delete_adapter("default").unwrap();
    let error = model.add_from_source("x", saving(&["lm_head"]), &tensors).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint has tensors that nothing reads: `base_model.model.model.norm.weight`; the config does not select the \
         modules `model.norm`"
    );
}
