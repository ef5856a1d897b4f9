//! Configs as text: by method, with what the method does not know, and back.

use crate::methods::{Bottleneck, Scale, registry};
use peft_core::{AdapterConfig, Error, ModuleNames, Registry};
use serde_json::{Value, json};

fn parse(config: Value) -> Result<AdapterConfig, String> {
    registry().parse(&config.to_string()).map_err(|e| e.to_string())
}

fn minimal() -> Value {
    json!({"peft_type": "BOTTLENECK", "r": 3, "target_modules": ["q_proj"]})
}

fn with(key: &str, value: Value) -> Value {
    let mut config = minimal();
    config[key] = value;
    config
}

#[test]
fn a_method_is_found_by_its_type() {
    let config = parse(minimal()).unwrap();
    assert_eq!(config.method.peft_type(), "BOTTLENECK");
    let method = config.method.downcast_ref::<Bottleneck>().unwrap();
    assert_eq!((method.r, method.bias.as_str()), (3, "none"));
    assert!(config.method.downcast_ref::<Scale>().is_none());
    assert_eq!(config.method.targets().target_modules, Some(ModuleNames::list(["q_proj"])));
}

#[test]
fn registering_twice_is_an_error() {
    let mut registry = Registry::new();
    registry.register::<Scale>().unwrap();
    let error = registry.register::<Scale>().unwrap_err();
    assert!(matches!(error, Error::DuplicateMethod { peft_type: "SCALE" }));
    assert_eq!(registry.methods().collect::<Vec<_>>(), ["SCALE"]);
}

#[test]
fn an_unknown_method_is_named_beside_the_known_ones() {
    let error = |tag: Value| parse(with("peft_type", tag)).unwrap_err();
    assert_eq!(error("NOPE".into()), "unknown adapter method `NOPE`; registered: BOTTLENECK, SCALE, STUBBORN");
    assert!(error("bottleneck".into()).contains("unknown adapter method `bottleneck`"));
    assert!(error(Value::Null).contains("unknown adapter method"));
    assert!(parse(json!({})).unwrap_err().contains("registered: BOTTLENECK"));
}

#[test]
fn unknown_fields_survive_a_round_trip() {
    let future = json!({"nested": [1, {"deep": null}], "text": "ä"});
    let config = parse(with("future_field", future.clone())).unwrap();
    assert_eq!(config.meta.unknown.len(), 1);
    let text = config.to_json().unwrap();
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["future_field"], future);
    assert_eq!(registry().parse(&text).unwrap().to_json().unwrap(), text);
}

#[test]
fn fields_are_written_as_peft_writes_them() {
    let text = parse(with("zebra", 1.into())).unwrap().to_json().unwrap();
    let keys: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("  \"")?.split('"').next()).collect();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    assert_eq!(keys, sorted);
    assert!(text.starts_with("{\n  \"auto_mapping\": null,\n") && text.ends_with("\n}"), "{text}");
    assert!(text.contains("\"peft_type\": \"BOTTLENECK\"") && text.contains("\"task_type\": null"), "{text}");
}

#[test]
fn shared_fields_are_kept() {
    let mut config = with("task_type", "TOKEN_CLS".into());
    config["base_model_name_or_path"] = "org/base".into();
    config["revision"] = "main".into();
    config["peft_version"] = "0.19.0".into();
    config["inference_mode"] = true.into();
    config["auto_mapping"] = json!({"base_model_class": "Net"});
    let parsed = parse(config.clone()).unwrap();
    assert!(parsed.meta.unknown.is_empty(), "{:?}", parsed.meta.unknown);
    let written: Value = serde_json::from_str(&parsed.to_json().unwrap()).unwrap();
    for (key, value) in config.as_object().unwrap() {
        assert_eq!(&written[key], value, "{key}");
    }
}

#[test]
fn a_config_made_here_says_what_it_is_for() {
    let config: AdapterConfig = Bottleneck::default().into();
    let written: Value = serde_json::from_str(&config.to_json().unwrap()).unwrap();
    assert_eq!(written["task_type"], "CAUSAL_LM");
    assert_eq!(written["peft_version"], peft_core::PEFT_VERSION);
}

#[test]
fn bad_values_are_refused_by_name() {
    let error = parse(with("task_type", "CAUSAL".into())).unwrap_err();
    let known = "null or one of SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION";
    assert_eq!(error, format!("invalid adapter config: `task_type` is `CAUSAL`; it must be {known}"));
    assert!(parse(with("r", 0.into())).unwrap_err().contains("`r` is 0"));
    assert!(parse(with("bias", "some".into())).unwrap_err().contains("`bias` is `some`"));
    assert!(parse(with("layers_pattern", "layers".into())).unwrap_err().contains("`layers_to_transform` must be set"));
    assert!(parse(with("target_modules", "q_(".into())).unwrap_err().contains("bad pattern `q_(`"));
    assert!(parse(with("layers_to_transform", 0.into())).is_ok());
}

#[test]
fn values_of_a_wrong_type_are_refused_by_name() {
    for (field, value) in [
        ("r", json!("2")),
        ("r", json!(-1)),
        ("target_modules", json!(3)),
        ("exclude_modules", json!({"a": 1})),
        ("layers_to_transform", json!(-1)),
        ("layers_to_transform", json!("first")),
        ("layers_pattern", json!(7)),
        ("modules_to_save", json!("lm_head")),
    ] {
        let error = parse(with(field, value.clone())).unwrap_err();
        assert!(error.contains(field), "{field} = {value}: {error}");
    }
}

#[test]
fn text_that_is_no_config_is_refused() {
    for text in ["", "{", "[]", "null", "{\"peft_type\": \"SCALE\",}"] {
        let error = registry().parse(text).unwrap_err().to_string();
        assert!(error.starts_with("invalid adapter config: "), "{text}: {error}");
    }
}
