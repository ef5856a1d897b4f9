//! Names of tensors as older and other files have them.

use crate::methods::{Bottleneck, registry};
use crate::support::{Tensors, bits, logits, named, saved, stir, tiny, with_adapter};
use peft_core::checkpoint::{CONFIG_FILE, DetachedAdapter, WEIGHTS_FILE};
use peft_core::{AdapterConfig, ModuleNames, PeftModel, Result, TargetSpec};
use peft_testkit::tiny::TinyModel;
use proptest::prelude::*;

const PREFIX: &str = "base_model.model.";

/// An adapter of every kind of tensor: factors, trained biases, a whole module.
fn method() -> Bottleneck {
    let modules_to_save = Some(vec!["norm".to_owned()]);
    Bottleneck {
        bias: "all".into(),
        ..Bottleneck::on(TargetSpec { modules_to_save, ..named(&["up_proj", "embed_tokens"]) })
    }
}

fn trained() -> (PeftModel<TinyModel>, Tensors) {
    let model = with_adapter(method());
    let tensors = saved(&model, "default");
    (model, tensors)
}

fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    let renamed: Tensors = tensors.iter().map(|(key, tensor)| (rename(key), tensor.clone())).collect();
    assert_eq!(renamed.len(), tensors.len());
    assert_ne!(renamed.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>(), "nothing was renamed");
    renamed
}

fn load(config: impl Into<AdapterConfig>, tensors: &Tensors) -> Result<PeftModel<TinyModel>> {
    let mut model = tiny();
    model.add_from_source("x", config, tensors)?;
    Ok(model)
}

/// Loaded, swapped in and opened alone, these tensors must be those of the adapter as PEFT names them.
#[track_caller]
fn same(tensors: &Tensors) {
    let (model, plain) = trained();
    let loaded = load(method(), tensors).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    let again = saved(&loaded, "x");
    assert_eq!(again.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    let mut swapped = with_adapter(method());
    stir(&swapped, 9);
    swapped.hotswap_from_source("default", method(), tensors).unwrap();
    swapped.eval().unwrap();
    assert_eq!(bits(&logits(&swapped)), bits(&logits(&model)));
    let detached = DetachedAdapter::from_source(method().into(), tensors).unwrap();
    let names: Vec<String> = detached.params.persisted().map(|(key, _)| key.to_string()).collect();
    let wanted = plain.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names.into_iter().collect::<std::collections::BTreeSet<_>>(), wanted);
}

#[track_caller]
fn refusal(tensors: &Tensors) -> String {
    let detached = DetachedAdapter::from_source(method().into(), tensors).unwrap_err().to_string();
    let error = load(method(), tensors).map(drop).unwrap_err().to_string();
    assert_eq!(error, detached);
    error
}

fn is_factor(key: &str) -> bool {
    key.contains("bottleneck_")
}

fn is_whole(key: &str) -> bool {
    key.contains("model.norm.")
}

fn in_wrapper(key: &str, wrapper: &str) -> String {
    let (path, name) = key.rsplit_once('.').unwrap();
    format!("{path}.{wrapper}.{name}")
}

#[test]
fn keys_without_a_prefix_are_keys_of_modules() {
    let (_, plain) = trained();
    same(&renamed(&plain, |key| key.strip_prefix(PREFIX).unwrap().to_owned()));
    // Some with, some without.
    same(&renamed(
        &plain,
        |key| if is_factor(key) { key.strip_prefix(PREFIX).unwrap().to_owned() } else { key.to_owned() },
    ));
}

#[test]
fn the_name_of_an_adapter_is_left_out() {
    let (_, plain) = trained();
    for name in ["default", "my-adapter", "0", "bottleneck"] {
        same(&renamed(&plain, |key| if is_factor(key) { format!("{key}.{name}") } else { key.to_owned() }));
    }
}

#[test]
fn whole_modules_are_found_in_their_wrapper() {
    let (_, plain) = trained();
    let wrapped = |wrapper: &'static str| {
        renamed(&plain, |key| if is_whole(key) { in_wrapper(key, wrapper) } else { key.to_owned() })
    };
    same(&wrapped("modules_to_save.default"));
    same(&wrapped("modules_to_save"));
    let mut with_originals = wrapped("modules_to_save.default");
    for (key, tensor) in plain.iter().filter(|(key, _)| is_whole(key)) {
        with_originals.insert(in_wrapper(key, "original_module"), (tensor + 1.0).unwrap());
    }
    same(&with_originals);
    // The untrained copy alone is not what was trained.
    let mut alone = plain.clone();
    let tensor = alone.remove("base_model.model.model.norm.weight").unwrap();
    alone.insert("base_model.model.model.norm.original_module.weight".into(), tensor);
    let error = load(method(), &alone).err().unwrap().to_string();
    assert!(error.contains("has no tensor `base_model.model.model.norm.weight`"), "{error}");
}

#[test]
fn biases_of_adapted_layers_are_found_where_they_were() {
    let (_, plain) = trained();
    same(&renamed(&plain, |key| key.replace(".base_layer.bias", ".bias")));
    let bias = "base_model.model.model.layers.0.mlp.up_proj.bias";
    let mut twice = plain;
    twice.insert(bias.into(), twice["base_model.model.model.layers.0.mlp.up_proj.base_layer.bias"].clone());
    assert!(refusal(&twice).contains(&format!("`{bias}`")), "{}", refusal(&twice));
}

#[test]
fn two_keys_that_mean_the_same_are_refused() {
    let (_, plain) = trained();
    let key = "base_model.model.model.layers.0.mlp.up_proj.bottleneck_A";
    for other in [
        "model.layers.0.mlp.up_proj.bottleneck_A",
        "model.layers.0.mlp.up_proj.bottleneck_A.default",
        "base_model.model.model.layers.0.mlp.up_proj.bottleneck_A.default",
    ] {
        let mut twice = plain.clone();
        twice.insert(other.into(), plain[key].clone());
        let error = refusal(&twice);
        assert!(error.starts_with("the names of the checkpoint's tensors are ambiguous: "), "{error}");
        assert!(error.ends_with(&format!(" both mean `{key}`")) && error.contains(&format!("`{other}`")), "{error}");
    }
}

/// Old files with trained biases have those of whole modules under two names.
#[test]
fn one_tensor_under_two_names_is_read_when_both_are_equal() {
    let (_, mut tensors) = trained();
    let bias = tensors["base_model.model.model.norm.bias"].clone();
    tensors.insert("base_model.model.model.norm.modules_to_save.bias".into(), bias.clone());
    tensors.insert("base_model.model.model.norm.original_module.bias".into(), bias.zeros_like().unwrap());
    same(&tensors);
    tensors.insert("base_model.model.model.norm.modules_to_save.bias".into(), (bias + 1.0).unwrap());
    assert!(refusal(&tensors).contains("both mean `base_model.model.model.norm.bias`"));
}

#[test]
fn tensors_of_two_adapters_are_refused() {
    let (_, plain) = trained();
    let mixed = renamed(&plain, |key| match is_factor(key) {
        true if key.contains("layers.0") => format!("{key}.first"),
        true => format!("{key}.second"),
        false => key.to_owned(),
    });
    assert!(refusal(&mixed).ends_with("they belong to the adapters `first`, `second`"));
}

#[test]
fn what_is_no_name_of_an_adapter_stays() {
    let (_, plain) = trained();
    for end in ["weight", "bias", "default.weight"] {
        let odd = renamed(&plain, |key| if is_factor(key) { format!("{key}.{end}") } else { key.to_owned() });
        load(method(), &odd).map(drop).unwrap_err();
    }
}

/// An adapter of a model without its head lacks the first name of each path.
#[test]
fn adapters_of_a_model_without_its_head_fit_the_model_with_it() {
    let config = || Bottleneck::on(named(&["up_proj"]));
    let model = with_adapter(config());
    let plain = saved(&model, "default");
    let without_model = |key: &str| key.replace("model.model.layers", "model.layers");
    for tensors in [
        renamed(&plain, without_model),
        renamed(&plain, |key| without_model(key).replace(PREFIX, "")),
        renamed(&plain, |key| without_model(key) + ".default"),
        renamed(&plain, |key| key.replace(PREFIX, "base_model.model.transformer.")),
    ] {
        let loaded = load(config(), &tensors).unwrap();
        assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
        assert_eq!(saved(&loaded, "x").keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    }
    // Where one tensor would stay behind nothing is moved.
    let some = renamed(&plain, |key| if key.contains("layers.0") { without_model(key) } else { key.to_owned() });
    let mut extra = renamed(&plain, without_model);
    extra.insert("base_model.model.head.bottleneck_A".into(), plain.values().next().unwrap().clone());
    for tensors in [some, extra] {
        let error = load(config(), &tensors).err().unwrap().to_string();
        assert!(error.contains("tensors for modules that the model lacks"), "{error}");
    }
}

#[test]
fn a_folder_with_other_names_is_loaded_swapped_and_opened() {
    let (model, plain) = trained();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter("default", folder.path()).unwrap();
    let tensors = renamed(&plain, |key| if is_factor(key) { format!("{key}.default") } else { key.to_owned() });
    let tensors: std::collections::HashMap<_, _> = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, folder.path().join(WEIGHTS_FILE)).unwrap();
    assert!(folder.path().join(CONFIG_FILE).exists());
    let mut loaded = tiny();
    loaded.load_adapter("x", folder.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    loaded.hotswap_adapter("x", folder.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    assert_eq!(DetachedAdapter::open(folder.path(), &registry()).unwrap().sites.len(), 3);
}

proptest! {
    /// Whatever the names are: what is loaded is all of the file, and each tensor once.
    #[test]
    fn no_name_is_lost(parts in prop::collection::vec(
        prop::sample::select(vec!["base_model", "model", "layers", "0", "up_proj", "bottleneck_A", "default", "weight", "modules_to_save",
            "original_module", "bias", "norm", ""]), 1..9)) {
        let (_, mut tensors) = trained();
        let name = parts.join(".");
        if !tensors.contains_key(&name) && !name.contains("original_module") && !name.contains("modules_to_save") {
            let any = tensors.values().next().unwrap().clone();
            tensors.insert(name, any);
            prop_assert!(load(method(), &tensors).is_err());
        }
    }
}

#[test]
fn nothing_in_a_file_is_said_plainly() {
    let error = DetachedAdapter::from_source(
        Bottleneck::on(TargetSpec::new(ModuleNames::all_linear())).into(),
        &Tensors::new(),
    );
    assert!(error.unwrap_err().to_string().ends_with("adapts a module with; it has none"));
}
