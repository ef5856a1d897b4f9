//! `adapter_config.json`: what is read, written and refused.

use crate::support::{own, plain, registry, shared};
use peft_core::{BoxedMethod, ModuleNames};
use peft_tinylora::{TinyLoraBias, TinyLoraConfig, TinyLoraInit};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The folders of every TinyLoRA adapter that PEFT wrote.
fn folders() -> Vec<PathBuf> {
    let mut found = vec![];
    for root in [shared(""), own("")] {
        let tops = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path());
        for top in tops.flat_map(|t| [t.join("other"), t.join("source"), t]) {
            let Ok(text) = std::fs::read_to_string(top.join("adapter_config.json")) else { continue };
            if text.contains("TINYLORA") {
                found.push(top);
            }
        }
    }
    found
}

/// The order of `target_modules` is that of a Python set: none.
fn normalised(mut config: Value) -> Value {
    if let Some(Value::Array(names)) = config.get_mut("target_modules") {
        names.sort_by_key(|n| n.to_string());
    }
    config
}

#[test]
fn every_config_that_peft_wrote_survives_a_round_trip() {
    let folders = folders();
    assert!(folders.len() >= 20, "{folders:?}");
    for folder in folders {
        let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let written = registry().parse(&text).unwrap().to_json().unwrap();
        let (before, after): (Value, Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_str(&written).unwrap());
        assert_eq!(normalised(before), normalised(after), "{}", folder.display());
    }
}

#[test]
fn a_minimal_config_has_pefts_defaults() {
    let parsed = registry().parse(r#"{"peft_type": "TINYLORA"}"#).unwrap();
    let config = parsed.method.downcast_ref::<TinyLoraConfig>().unwrap();
    assert_eq!(*config, TinyLoraConfig::default());
    assert_eq!((config.r, config.u, config.projection_seed), (2, 64, 42));
    assert_eq!((config.weight_tying, config.init_v_bound, config.tinylora_dropout), (0.0, 0.02, 0.0));
    assert!(config.save_projection && !config.fan_in_fan_out);
}

#[test]
fn floats_are_written_as_they_were_read() {
    let text = r#"{"peft_type": "TINYLORA", "tinylora_dropout": 0.1, "weight_tying": 0.3333333333333333, "projection_seed": -1}"#;
    let written: Value = serde_json::from_str(&registry().parse(text).unwrap().to_json().unwrap()).unwrap();
    assert_eq!(written["tinylora_dropout"], json!(0.1));
    assert_eq!(written["weight_tying"], json!(0.3333333333333333));
    assert_eq!(written["projection_seed"], json!(-1));
}

#[test]
fn typed_values_have_pefts_spelling() {
    let parse = |field: &str, value: Value| -> TinyLoraConfig {
        let text = json!({"peft_type": "TINYLORA", field: value}).to_string();
        registry().parse(&text).unwrap().method.downcast_ref::<TinyLoraConfig>().unwrap().clone()
    };
    assert_eq!(parse("init_weights", json!(true)).init_weights, TinyLoraInit::Zeros);
    assert_eq!(parse("init_weights", json!(false)).init_weights, TinyLoraInit::Unspecified);
    assert_eq!(parse("init_weights", json!("uniform")).init_weights, TinyLoraInit::Uniform);
    assert_eq!(parse("bias", json!("none")).bias, TinyLoraBias::None);
    assert_eq!(parse("bias", json!("all")).bias, TinyLoraBias::All);
    assert_eq!(parse("bias", json!("tinylora_only")).bias, TinyLoraBias::TinyLoraOnly);
    for init in [json!(true), json!(false), json!("uniform")] {
        assert_eq!(serde_json::to_value(parse("init_weights", init.clone())).unwrap()["init_weights"], init);
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let refused = [
        ("r", json!(0), "positive"),
        ("u", json!(0), "positive"),
        ("weight_tying", json!(1.5), "between 0 and 1"),
        ("weight_tying", json!(-0.1), "between 0 and 1"),
        ("tinylora_dropout", json!(1.01), "between 0 and 1"),
        ("init_weights", json!("foo"), "\"uniform\""),
        ("init_weights", json!(3), "\"uniform\""),
        ("bias", json!("foo_only"), "tinylora_only"),
        ("exclude_modules", json!(["lm_head"]), "target_modules"),
        ("layers_pattern", json!("layers"), "layers_to_transform"),
        ("target_modules", json!("(q_proj"), "(q_proj"),
    ];
    for (field, value, hint) in refused {
        let text = json!({"peft_type": "TINYLORA", field: value}).to_string();
        let error = registry().parse(&text).unwrap_err().to_string();
        assert!(error.contains(hint), "{field}: {error}");
        // serde names the values that fit but not the field.
        assert!(error.contains(field) || matches!(field, "bias" | "target_modules"), "{field}: {error}");
    }
    for text in [r#""r": 2.5"#, r#""r": "2""#, r#""u": -3"#, r#""weight_tying": "all""#] {
        assert!(registry().parse(&format!(r#"{{"peft_type": "TINYLORA", {text}}}"#)).is_err(), "{text}");
    }
}

#[test]
fn nan_and_negative_bounds_are_refused_where_they_count() {
    let check = |config: TinyLoraConfig| BoxedMethod::from(config).validate();
    assert!(check(plain().with_weight_tying(f64::NAN)).is_err());
    let mut config = plain();
    config.init_v_bound = -0.1;
    assert!(check(config.clone()).is_ok(), "PEFT accepts a bound that is not used");
    let error = check(config.clone().with_init_weights(TinyLoraInit::Uniform)).unwrap_err().to_string();
    assert!(error.contains("init_v_bound"), "{error}");
    config.init_v_bound = f64::INFINITY;
    assert!(check(config.with_init_weights(TinyLoraInit::Unspecified)).is_err());
}

#[test]
fn a_regular_expression_stays_one() {
    let text = r#"{"peft_type": "TINYLORA", "target_modules": ".*\\.0\\..*(gate|down)_proj"}"#;
    let parsed = registry().parse(text).unwrap();
    assert_eq!(parsed.method.targets().target_modules, Some(ModuleNames::Pattern(r".*\.0\..*(gate|down)_proj".into())));
}
