//! What a LoRA config may say.

use peft_core::{ParamKey, PeftModel, Registry};
use peft_lora::{LoraConfig, LoraInit};
use peft_testkit::tiny::TinySpec;

fn parse(fields: &str) -> peft_core::Result<LoraConfig> {
    let mut registry = Registry::new();
    registry.register::<LoraConfig>().unwrap();
    let config = registry.parse(&format!(r#"{{"peft_type": "LORA"{fields}}}"#))?;
    Ok(config.method.downcast_ref::<LoraConfig>().unwrap().clone())
}

#[test]
fn defaults_are_those_of_peft() {
    let config = parse("").unwrap();
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (8, 8.0, 0.0));
    assert_eq!(config.init_lora_weights, LoraInit::Identity);
    assert!(!config.use_rslora);
}

#[test]
fn an_option_that_is_not_supported_is_an_error_when_it_is_set() {
    for (fields, name) in [
        (r#", "use_qalora": true"#, "use_qalora"),
        (r#", "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}"#, "init_lora_weights"),
        (r#", "layer_replication": [[0, 2]]"#, "layer_replication"),
        (r#", "init_lora_weights": "corda""#, "init_lora_weights"),
        (r#", "init_lora_weights": "pissa_niter_16""#, "init_lora_weights"),
        (r#", "target_parameters": ["experts"]"#, "target_parameters"),
    ] {
        let error = parse(fields).unwrap_err().to_string();
        assert!(error.contains(name), "{fields}: {error}");
    }
    // At their defaults, or null, they say nothing.
    parse(r#", "use_dora": false, "loftq_config": null, "megatron_core": "megatron.core", "qalora_group_size": 16"#)
        .unwrap();
    // Nor do those that only count with another that is not set.
    parse(r#", "loftq_config": {"loftq_bits": 4}, "megatron_core": "other", "qalora_group_size": 32"#).unwrap();
}

/// Some configs have null for a flag; to PEFT it is false.
#[test]
fn flags_that_are_null_are_not_set() {
    let config = parse(
        r#", "fan_in_fan_out": null, "use_dora": null, "use_rslora": null, "rank_pattern": null, "inference_mode": null"#,
    )
    .unwrap();
    assert!(!config.fan_in_fan_out && !config.use_dora && !config.use_rslora && config.rank_pattern.is_empty());
    for field in ["r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights"] {
        let error = parse(&format!(r#", "use_dora": null, "{field}": null"#)).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}` is null")), "{error}");
    }
}

/// Factors that began without a change to the base are an ordinary LoRA once they are trained.
#[test]
fn beginnings_that_leave_the_base_alone_are_read_and_not_made() {
    for name in ["eva", "orthogonal"] {
        let config = parse(&format!(r#", "init_lora_weights": "{name}", "target_modules": ["up_proj"]"#)).unwrap();
        let mut plain = config.clone();
        plain.init_lora_weights = LoraInit::Identity;
        let mut model = PeftModel::new(TinySpec::default().build().unwrap());
        let error = model.add_adapter("a", config.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("`init_lora_weights` is \"{name}\"")), "{error}");
        model.add_adapter("a", plain).unwrap();
        let params = &model.adapter("a").unwrap().params;
        let tensors: std::collections::BTreeMap<_, _> =
            params.persisted().map(|(key, tensor)| (key.to_string(), tensor.clone())).collect();
        model.add_from_source("b", config, &tensors).unwrap();
    }
}

/// PEFT before 0.4 had it, and other tensors with it.
#[test]
fn an_option_that_is_gone_is_refused_when_it_says_something() {
    let load = |fields: &str| {
        let mut registry = Registry::new();
        registry.register::<LoraConfig>().unwrap();
        let text = format!(r#"{{"peft_type": "LORA", "target_modules": ["up_proj"], "merge_weights": false{fields}}}"#);
        let config = registry.parse(&text).unwrap();
        let mut model = PeftModel::new(TinySpec::default().build().unwrap());
        model.add_from_source("a", config, &std::collections::BTreeMap::new()).unwrap_err().to_string()
    };
    assert!(load(r#", "enable_lora": [true, false, true]"#).contains("`enable_lora` is [true,false,true]"));
    assert!(load(r#", "enable_lora": null"#).contains("has no tensor"));
}

#[test]
fn values_out_of_range_name_their_field() {
    for (fields, name) in [
        (r#", "r": 0"#, "`r`"),
        (r#", "r": 2.5"#, "`r`"),
        (r#", "rank_pattern": {"q_proj": 0}"#, "`r`"),
        (r#", "lora_dropout": 1.5"#, "`lora_dropout`"),
        (r#", "bias": "some""#, "`bias`"),
        (r#", "alpha_pattern": {"(": 1}"#, "pattern `(`"),
    ] {
        let error = parse(fields).unwrap_err().to_string();
        assert!(error.contains(name), "{fields}: {error}");
    }
}

#[test]
fn the_first_pattern_of_the_file_that_fits_counts() {
    let overlapping = |patterns: &str| {
        let config = parse(&format!(r#", "r": 8, "rank_pattern": {patterns}, "target_modules": ["up_proj"]"#)).unwrap();
        let again = serde_json::to_string(&config.rank_pattern).unwrap();
        assert_eq!(again, patterns, "written in the order of the file");
        let mut model = PeftModel::new(TinySpec::default().build().unwrap());
        model.add_adapter("default", config).unwrap();
        let key = ParamKey::site("model.layers.0.mlp.up_proj", "lora_A.weight");
        model.adapter("default").unwrap().params.tensor(&key).unwrap().dims()[0]
    };
    assert_eq!(overlapping(r#"{"up_proj":1,"layers.0.mlp.up_proj":2}"#), 1);
    assert_eq!(overlapping(r#"{"layers.0.mlp.up_proj":2,"up_proj":1}"#), 2);
}

#[test]
fn a_pattern_that_fits_nothing_is_refused_for_a_fresh_adapter() {
    for field in ["rank_pattern", "alpha_pattern"] {
        let config = parse(&format!(r#", "{field}": {{"up_porj": 4}}, "target_modules": ["up_proj"]"#)).unwrap();
        let mut model = PeftModel::new(TinySpec::default().build().unwrap());
        let error = model.add_adapter("default", config).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("`up_porj`") && error.contains("up_proj"), "{error}");
    }
}

#[test]
fn what_begins_as_a_part_of_the_weight_must_fit_into_it() {
    let add = |fields: &str| {
        let mut model = PeftModel::new(TinySpec::default().build().unwrap());
        model.add_adapter("default", parse(fields).unwrap()).unwrap_err().to_string()
    };
    let error = add(r#", "init_lora_weights": "pissa", "target_modules": ["embed_tokens"]"#);
    assert!(error.contains("embedding") && error.contains("model.embed_tokens"), "{error}");
    let error = add(r#", "init_lora_weights": "olora", "r": 7, "target_modules": ["up_proj"]"#);
    assert!(error.contains("`r` is 7") && error.contains("8 x 6"), "{error}");
    let error = add(r#", "lora_bias": true, "target_modules": ["embed_tokens"]"#);
    assert!(error.contains("`lora_bias`") && error.contains("model.embed_tokens"), "{error}");
}
