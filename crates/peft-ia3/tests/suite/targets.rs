//! Which modules are adapted, and which of them have their inputs scaled.

use peft_core::{ModuleNames, PeftModel};
use peft_ia3::Ia3Config;
use peft_testkit::skeleton::Skeleton;
use serde_json::Value;

fn config(targets: Option<ModuleNames>, feedforward: Option<ModuleNames>) -> Ia3Config {
    let mut config = Ia3Config::default();
    config.targets.target_modules = targets;
    config.feedforward_modules = feedforward;
    config
}

/// The config as it would be saved, and the paths whose inputs are scaled.
fn adapt(model: Skeleton, config: Ia3Config) -> Result<(Ia3Config, Vec<String>), String> {
    let mut model = PeftModel::new(model);
    let adapter = model.add_adapter("default", config).map_err(|e| e.to_string())?;
    let scaled = adapter.params.persisted().filter(|(_, l)| l.dims()[0] == 1).map(|(key, _)| {
        let key = key.to_string();
        key.strip_prefix("base_model.model.").unwrap().strip_suffix(".ia3_l").unwrap().to_owned()
    });
    Ok((adapter.config.method.downcast_ref::<Ia3Config>().unwrap().clone(), scaled.collect()))
}

fn with(model_type: &str, paths: &[String]) -> Skeleton {
    paths.iter().fold(Skeleton::new().of_type(model_type), |model, path| model.linear(path).unwrap())
}

fn list(names: &[&str]) -> Option<ModuleNames> {
    Some(ModuleNames::list(names.iter().copied()))
}

fn names(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_usual_modules_are_those_of_peft_and_are_recorded() {
    let tables: Value = serde_json::from_str(include_str!("../fixtures/usual_modules.json")).unwrap();
    let tables = tables.as_object().unwrap();
    assert_eq!(tables.len(), 27);
    for (model_type, usual) in tables {
        let (targets, feedforward) = (names(&usual["target_modules"]), names(&usual["feedforward_modules"]));
        let paths: Vec<String> = targets.iter().map(|name| format!("block.0.{name}")).collect();
        let (saved, scaled) = adapt(with(model_type, &paths), Ia3Config::default()).unwrap();
        assert_eq!(saved.targets.target_modules, Some(ModuleNames::List(targets)), "{model_type}");
        assert_eq!(scaled.len(), feedforward.len(), "{model_type}");
        assert!(scaled.iter().zip(&feedforward).all(|(path, name)| path.ends_with(name.as_str())), "{model_type}");
        assert_eq!(saved.feedforward_modules, Some(ModuleNames::List(feedforward)), "{model_type}");
    }
}

#[test]
fn without_usual_modules_both_fields_must_be_named() {
    let model = |kind| with(kind, &["x.q_proj".into(), "x.down_proj".into()]);
    let error = adapt(model("phi3"), Ia3Config::default()).unwrap_err();
    assert!(error.contains("`target_modules` must be set: model type `phi3`"), "{error}");
    let error = adapt(model("phi3"), config(list(&["q_proj"]), None)).unwrap_err();
    assert!(error.contains("`feedforward_modules` must be set: model type `phi3`"), "{error}");
    let error = adapt(Skeleton::new().linear("q_proj").unwrap(), config(list(&["q_proj"]), None)).unwrap_err();
    assert!(error.contains("`feedforward_modules` must be set: this model"), "{error}");
    assert_eq!(adapt(model("phi3"), config(list(&["q_proj"]), list(&[]))).unwrap().1, Vec::<String>::new());
    // LoRA's table knows it, IA3's does not.
    assert!(adapt(model("stablelm"), Ia3Config::default()).unwrap_err().contains("`stablelm`"));
}

/// PEFT writes the usual feed-forward modules whether or not they are adapted, and then refuses the file.
#[test]
fn usual_modules_that_are_not_adapted_are_left_out() {
    let (saved, scaled) = adapt(Skeleton::llama(2).unwrap(), config(list(&["q_proj"]), None)).unwrap();
    assert_eq!((saved.feedforward_modules, scaled), (list(&[]), vec![]));
}

/// PEFT writes `["down_proj"]` beside the full names that `all-linear` stands for, and then refuses the file.
#[test]
fn what_is_saved_is_a_subset_of_the_targets() {
    let down = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"];
    for (targets, feedforward, saved_as) in [
        (Some(ModuleNames::all_linear()), None, down.as_slice()),
        (Some(ModuleNames::all_linear()), list(&["down_proj"]), &down),
        (list(&["q_proj", "mlp.down_proj"]), None, &["mlp.down_proj"]),
        (list(&["q_proj", "down_proj"]), None, &["down_proj"]),
    ] {
        let (saved, scaled) = adapt(Skeleton::llama(2).unwrap(), config(targets.clone(), feedforward)).unwrap();
        assert_eq!(scaled, down, "{targets:?}");
        assert_eq!(saved.feedforward_modules, list(saved_as), "{targets:?}");
        // The saved config means the same, and is settled: neither changes when it is used again.
        let again = adapt(Skeleton::llama(2).unwrap(), saved.clone()).unwrap();
        assert_eq!(again, (saved, scaled), "{targets:?}");
    }
    // From 20 modules on, `all-linear` is condensed to names, of which one is the feed-forward's.
    let (saved, scaled) = adapt(Skeleton::llama(3).unwrap(), config(Some(ModuleNames::all_linear()), None)).unwrap();
    assert_eq!((saved.feedforward_modules, scaled.len()), (list(&["down_proj"]), 3));
}

/// GPT-2 calls an attention and a feed-forward layer `c_proj`, and the usual name means the latter.
#[test]
fn modules_that_no_target_means_alone_are_named_in_full() {
    let paths = ["h.0.attn.c_proj".to_owned(), "h.0.mlp.c_proj".to_owned()];
    let (saved, scaled) = adapt(with("gpt2", &paths), config(list(&["c_proj"]), None)).unwrap();
    assert_eq!(scaled, ["h.0.mlp.c_proj"]);
    assert_eq!(saved.feedforward_modules, list(&["h.0.mlp.c_proj"]));
    assert_eq!(saved.targets.target_modules, list(&["c_proj", "h.0.mlp.c_proj"]));
    assert_eq!(adapt(with("gpt2", &paths), saved.clone()).unwrap(), (saved, scaled));
}

#[test]
fn names_end_paths_with_or_without_a_dot_and_expressions_match_them_whole() {
    let qkv = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("model.layers.0.self_attn.{name}_proj")).collect()
    };
    let attention = Some(ModuleNames::Pattern(r".*self_attn\.[qkv]_proj".into()));
    for (feedforward, expected) in [
        (list(&["proj"]), qkv(&["k", "q", "v"])),
        (list(&["k_proj", "attn.v_proj"]), qkv(&["k", "v"])),
        (Some(ModuleNames::Pattern(r".*[qv]_proj".into())), qkv(&["q", "v"])),
    ] {
        let (_, scaled) = adapt(Skeleton::llama(1).unwrap(), config(attention.clone(), feedforward.clone())).unwrap();
        assert_eq!(scaled, expected, "{feedforward:?}");
    }
}

/// PEFT ignores them, and scales outputs where inputs were meant.
#[test]
fn feedforward_modules_that_mean_nothing_are_refused() {
    let attention = Some(ModuleNames::Pattern(r".*self_attn\.[qkv]_proj".into()));
    for feedforward in
        [list(&["k_proj", "down_prj"]), Some(ModuleNames::Pattern("down_prj".into())), Some(ModuleNames::all_linear())]
    {
        let error = adapt(Skeleton::llama(1).unwrap(), config(attention.clone(), feedforward.clone())).unwrap_err();
        assert!(error.contains("means none of the adapted modules") && error.contains("q_proj"), "{error}");
    }
}

#[test]
fn embeddings_and_norms_are_refused_by_name() {
    for (name, path) in [("embed_tokens", "the Embedding at `model.embed_tokens`"), ("norm", "layer at `model.norm`")] {
        let error = adapt(Skeleton::llama(1).unwrap(), config(list(&[name]), list(&[]))).unwrap_err();
        assert!(error.contains(path) && error.ends_with("it adapts Linear and Conv1D layers"), "{error}");
    }
}
