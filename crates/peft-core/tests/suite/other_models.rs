//! Adapters that were made for another model: what is said.

use crate::methods::Bottleneck;
use crate::support::{Tensors, named, on, saved, tiny, with_adapter};
use peft_core::{AdapterConfig, Error};
use peft_testkit::tiny::TinySpec;

/// Loading must fail; what was said.
#[track_caller]
fn refusal(config: impl Into<AdapterConfig>, tensors: &Tensors) -> String {
    let mut model = tiny();
    let error = model.add_from_source("x", config, tensors).unwrap_err().to_string();
    assert!(model.adapters().is_empty());
    error
}

fn tensors(targets: &[&str]) -> Tensors {
    saved(&with_adapter(Bottleneck::on(named(targets))), "default")
}

fn under(tensors: Tensors, name: &str, other: &str) -> Tensors {
    tensors.into_iter().map(|(key, tensor)| (key.replace(name, other), tensor)).collect()
}

#[test]
fn merged_projections_are_named_with_what_the_model_has() {
    for (name, config) in [
        ("gate_up_proj", named(&["gate_up_proj"])),
        // Some of the targets exist, and the file has more.
        ("qkv_proj", named(&["qkv_proj", "down_proj"])),
        ("W_pack", named(&["W_pack", "up_proj"])),
        // A config that does not say what the file has.
        ("query_key_value", named(&["down_proj"])),
    ] {
        let mut file = under(tensors(&["up_proj"]), "up_proj", name);
        file.extend(tensors(&["down_proj"]));
        let error = refusal(Bottleneck::on(config), &file);
        let first = format!("base_model.model.model.layers.0.mlp.{name}.bottleneck_A");
        let start = format!("the checkpoint has tensors for modules that the model lacks (`{name}`): `{first}`, ");
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains("; the model has embed_tokens, ") && error.contains("up_proj"), "{error}");
    }
}

#[test]
fn long_lists_are_cut() {
    let spec = TinySpec { layers: 9, ..TinySpec::default() };
    let mut deep = on(&spec);
    deep.add_adapter("default", Bottleneck::on(named(&["up_proj"]))).unwrap();
    let error = refusal(Bottleneck::on(named(&["up_proj"])), &saved(&deep, "default"));
    let start = "the checkpoint has tensors for modules that the model lacks (`model.layers.2.mlp.up_proj`, ";
    assert!(error.starts_with(start), "{error}");
    assert!(error.contains("`): `base_model.model.model.layers.2.mlp.up_proj.bottleneck_A`"), "{error}");
    assert!(error.contains("` and 6 more; the model has "), "{error}");
}

#[test]
fn names_are_those_of_the_file() {
    let file = under(tensors(&["up_proj"]), "up_proj.bottleneck_A", "up_proj.bottleneck_A.default");
    let error = refusal(Bottleneck::on(named(&["up_proj"])), &under(file.clone(), "up_proj", "W_pack"));
    assert!(error.contains("`base_model.model.model.layers.0.mlp.W_pack.bottleneck_A.default`"), "{error}");
    assert!(error.contains("lacks (`W_pack`)"), "{error}");
    let error = refusal(Bottleneck::on(named(&["0.mlp.up_proj"])), &file);
    assert_eq!(
        error,
        "the checkpoint has tensors that nothing reads: `base_model.model.model.layers.1.mlp.up_proj.bottleneck_A.default`, \
         `base_model.model.model.layers.1.mlp.up_proj.bottleneck_B`; the config does not select the modules \
         `model.layers.1.mlp.up_proj`"
    );
}

#[test]
fn a_file_with_fewer_modules_is_refused_with_those_it_lacks() {
    let mut file = tensors(&["up_proj"]);
    let error = refusal(Bottleneck::on(named(&["up_proj", "down_proj"])), &file);
    assert_eq!(
        error,
        "the checkpoint has no tensor `base_model.model.model.layers.0.mlp.down_proj.bottleneck_A`; it has none for 2 of the 4 \
         modules that the config selects: `model.layers.0.mlp.down_proj`, `model.layers.1.mlp.down_proj`"
    );
    // One tensor of a module that has others: there is nothing more to say.
    file.remove("base_model.model.model.layers.1.mlp.up_proj.bottleneck_B").unwrap();
    let error = tiny().add_from_source("x", Bottleneck::on(named(&["up_proj"])), &file).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor(name) if name.ends_with("1.mlp.up_proj.bottleneck_B")), "{error}");
}

#[test]
fn biases_that_were_never_saved_are_explained() {
    let config = || Bottleneck { bias: "targets".into(), ..Bottleneck::on(named(&["up_proj"])) };
    let mut file = saved(&with_adapter(config()), "default");
    file.retain(|key, _| !key.ends_with("bias"));
    let error = refusal(config(), &file);
    assert_eq!(
        error,
        "the checkpoint has no tensor `base_model.model.model.layers.0.mlp.up_proj.base_layer.bias`; PEFT 0.7 to 0.20 did not save \
         such biases; with `bias` \"none\" in the config the rest is loaded"
    );
    tiny().add_from_source("x", Bottleneck::on(named(&["up_proj"])), &file).unwrap();
}

#[test]
fn targets_that_match_nothing_are_named_with_what_the_model_has() {
    let error = refusal(Bottleneck::on(named(&["c_attn"])), &tensors(&["up_proj"]));
    assert!(error.starts_with("no module matches [c_attn]"), "{error}");
    assert!(error.contains("; the model has embed_tokens, up_proj, down_proj, "), "{error}");
}
