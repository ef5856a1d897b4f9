//! `adapter_config.json`: what is read, written and refused.

use peft_core::{ModuleNames, Registry, Result};
use peft_ia3::Ia3Config;
use serde_json::{Value, json};

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<Ia3Config>().unwrap();
    registry
}

fn parse(fields: Value) -> Result<Ia3Config> {
    let mut all = json!({"peft_type": "IA3"});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Ok(registry().parse(&all.to_string())?.method.downcast_ref::<Ia3Config>().unwrap().clone())
}

#[test]
fn a_minimal_config_has_pefts_defaults() {
    let config = parse(json!({})).unwrap();
    assert_eq!(config, Ia3Config::default());
    assert!(config.init_ia3_weights && !config.fan_in_fan_out);
    assert_eq!((config.feedforward_modules, config.targets.target_modules), (None, None));
}

/// The keys of a config that PEFT 0.21.2 wrote.
#[test]
fn exactly_pefts_fields_are_written() {
    let written = registry().parse(r#"{"peft_type": "IA3"}"#).unwrap().to_json().unwrap();
    let written: Value = serde_json::from_str(&written).unwrap();
    let keys: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "feedforward_modules",
        "inference_mode",
        "init_ia3_weights",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "target_modules",
        "task_type",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn every_field_survives_a_round_trip() {
    let fields = json!({
        "exclude_modules": ["layers.0.mlp.down_proj"],
        "fan_in_fan_out": true,
        "feedforward_modules": ["down_proj"],
        "init_ia3_weights": false,
        "modules_to_save": ["lm_head"],
        "target_modules": ["k_proj", "down_proj"],
    });
    let config = parse(fields.clone()).unwrap();
    assert_eq!(serde_json::to_value(&config).unwrap(), fields);
    assert_eq!(config.feedforward_modules, Some(ModuleNames::list(["down_proj"])));
    let expressions = json!({"target_modules": ".*_proj", "feedforward_modules": ".*(up|down)_proj"});
    let config = parse(expressions).unwrap();
    assert_eq!(config.feedforward_modules, Some(ModuleNames::Pattern(".*(up|down)_proj".into())));
}

#[test]
fn contradictions_are_refused_by_name() {
    for (fields, hints) in [
        (json!({"target_modules": ["q_proj"], "feedforward_modules": ["down_proj"]}), ["subset", "`down_proj`"]),
        (
            json!({"target_modules": ["mlp.down_proj"], "feedforward_modules": ["down_proj"]}),
            ["subset", "mlp.down_proj"],
        ),
        (json!({"feedforward_modules": "(down"}), ["bad pattern", "(down"]),
        (json!({"target_modules": "(down"}), ["bad pattern", "(down"]),
        (json!({"layers_to_transform": [1]}), ["layers_to_transform", "exclude_modules"]),
        (json!({"layers_to_transform": [1], "layers_pattern": "h"}), ["layers_to_transform", "exclude_modules"]),
        (json!({"init_ia3_weights": "ones"}), ["init_ia3_weights", "boolean"]),
        (json!({"feedforward_modules": 3}), ["feedforward_modules", "3"]),
    ] {
        let error = parse(fields.clone()).unwrap_err().to_string();
        assert!(hints.iter().all(|hint| error.contains(hint)), "{fields}: {error}");
    }
}

/// PEFT compares two lists only.
#[test]
fn a_subset_is_asked_for_only_of_two_lists() {
    for fields in [
        json!({"target_modules": "all-linear", "feedforward_modules": ["down_proj"]}),
        json!({"target_modules": ["q_proj"], "feedforward_modules": ".*down_proj"}),
        json!({"target_modules": null, "feedforward_modules": ["down_proj"]}),
        json!({"target_modules": ["q_proj"], "feedforward_modules": []}),
    ] {
        parse(fields).unwrap();
    }
}
