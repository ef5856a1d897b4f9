//! `adapter_config.json`: what is read, written and refused.

use crate::support::registry;
use peft_core::BoxedMethod;
use peft_lora_xs::{LoraXsBias, LoraXsConfig};
use serde_json::{Value, json};

fn parse(fields: Value) -> peft_core::Result<LoraXsConfig> {
    let mut all = json!({"peft_type": "LORA_XS"});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Ok(registry().parse(&all.to_string())?.method.downcast_ref::<LoraXsConfig>().unwrap().clone())
}

#[test]
fn a_minimal_config_has_the_defaults() {
    let config = parse(json!({})).unwrap();
    assert_eq!(config, LoraXsConfig::default());
    assert_eq!((config.r, config.scaling(), config.init_std), (8, 1.0, 1e-5));
}

#[test]
fn every_field_is_written_and_read_again() {
    let fields = json!({
        "r": 3, "lora_xs_alpha": 12.0, "lora_xs_dropout": 0.1, "init_std": 0.0, "fan_in_fan_out": true, "bias": "lora_xs_only",
        "target_modules": ["q_proj"], "exclude_modules": "lm_head", "layers_to_transform": [1], "layers_pattern": "h",
        "modules_to_save": ["norm"],
    });
    let config = parse(fields.clone()).unwrap();
    assert_eq!((config.bias, config.scaling()), (LoraXsBias::LoraXsOnly, 4.0));
    assert_eq!(BoxedMethod::from(config).to_json().unwrap(), fields);
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (field, value, hint) in [
        ("r", json!(0), "positive"),
        ("r", json!(-1), "-1"),
        ("lora_xs_alpha", json!("big"), "f64"),
        ("lora_xs_dropout", json!(1.5), "between 0 and 1"),
        ("init_std", json!(-1e-5), "at least 0"),
        ("init_std", json!(1e39), "finite"),
        ("bias", json!("lora_only"), "lora_xs_only"),
    ] {
        let error = parse(json!({ field: value })).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains(hint), "{field}: {error}");
    }
    let fields: [fn(&mut LoraXsConfig) -> &mut f64; 3] =
        [|config| &mut config.lora_xs_alpha, |config| &mut config.init_std, |config| &mut config.lora_xs_dropout];
    for field in fields {
        let mut config = LoraXsConfig::default();
        *field(&mut config) = f64::NAN;
        assert!(BoxedMethod::from(config).validate().is_err());
    }
}
