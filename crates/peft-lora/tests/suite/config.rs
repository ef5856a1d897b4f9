//! What a LoRA config may say.

use peft_core::Registry;
use peft_lora::{LoraConfig, LoraInit};

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
        (r#", "use_dora": true"#, "use_dora"),
        (r#", "lora_bias": true"#, "lora_bias"),
        (r#", "loftq_config": {"loftq_bits": 4}"#, "loftq_config"),
        (r#", "layer_replication": [[0, 2]]"#, "layer_replication"),
        (r#", "init_lora_weights": "pissa""#, "init_lora_weights"),
        (r#", "target_parameters": ["experts"]"#, "target_parameters"),
    ] {
        let error = parse(fields).unwrap_err().to_string();
        assert!(error.contains(name), "{fields}: {error}");
    }
    // At their defaults, or null, they say nothing.
    parse(r#", "use_dora": false, "loftq_config": null, "megatron_core": "megatron.core", "qalora_group_size": 16"#)
        .unwrap();
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
