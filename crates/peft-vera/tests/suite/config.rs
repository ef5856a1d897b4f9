//! `adapter_config.json`: what is read, written and refused.

use crate::support::registry;
use peft_core::{AdapterMethod, BoxedMethod, TargetSpec};
use peft_testkit::fixture::root;
use peft_vera::{VeraBias, VeraConfig};
use serde_json::{Value, json};

fn parse(fields: Value) -> peft_core::Result<VeraConfig> {
    let mut all = json!({"peft_type": "VERA"});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Ok(registry().parse(&all.to_string())?.method.downcast_ref::<VeraConfig>().unwrap().clone())
}

#[test]
fn defaults_are_those_of_peft() {
    let config = parse(json!({})).unwrap();
    assert_eq!(config, VeraConfig::default());
    assert_eq!((config.r, config.projection_prng_key, config.save_projection), (256, 0, true));
    assert_eq!((config.vera_dropout, config.d_initial, config.init_weights), (0.0, 0.1, true));
    assert_eq!((config.bias, config.fan_in_fan_out, config.targets), (VeraBias::None, false, TargetSpec::default()));
}

/// The order of `target_modules` is that of a Python set: none.
fn normalised(mut config: Value) -> Value {
    if let Some(Value::Array(names)) = config.get_mut("target_modules") {
        names.sort_by_key(ToString::to_string);
    }
    config
}

#[test]
fn every_config_that_peft_wrote_survives_a_round_trip() {
    let mut seen = 0;
    for folder in std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(text) = std::fs::read_to_string(folder.join("adapter_config.json")) else { continue };
        if !text.contains("\"VERA\"") {
            continue;
        }
        let written = registry().parse(&text).unwrap().to_json().unwrap();
        let [before, after] = [&text, &written].map(|text| normalised(serde_json::from_str(text).unwrap()));
        assert_eq!(before, after, "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn typed_values_have_pefts_spelling() {
    for (bias, value) in [("none", VeraBias::None), ("all", VeraBias::All), ("vera_only", VeraBias::VeraOnly)] {
        let config = parse(json!({ "bias": bias })).unwrap();
        assert_eq!(config.bias, value);
        assert_eq!(BoxedMethod::from(config).to_json().unwrap()["bias"], bias);
    }
    assert_eq!(parse(json!({"projection_prng_key": -1})).unwrap().projection_prng_key, -1);
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (field, value, hint) in [
        ("r", json!(0), "positive"),
        ("r", json!(-4), "-4"),
        ("r", json!(2.5), "2.5"),
        ("vera_dropout", json!(1.01), "between 0 and 1"),
        ("vera_dropout", json!(-0.1), "between 0 and 1"),
        ("d_initial", json!(1e39), "finite"),
        ("init_weights", json!("gaussian"), "bool"),
        ("projection_prng_key", json!("0"), "i64"),
        ("save_projection", json!(1), "bool"),
        ("bias", json!("lora_only"), "vera_only"),
        ("exclude_modules", json!(["lm_head"]), "target_modules"),
        ("layers_pattern", json!("layers"), "layers_to_transform"),
    ] {
        let error = parse(json!({ field: value })).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains(hint), "{field}: {error}");
    }
    let mut nan = VeraConfig::default();
    nan.vera_dropout = f64::NAN;
    assert!(AdapterMethod::validate(&nan).is_err());
}
