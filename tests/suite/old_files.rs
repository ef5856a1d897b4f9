//! Adapters of older PEFTs and from elsewhere (`tests/fixtures/old_files`, `tests/fixtures/old_configs`).

use crate::fixture::{Case, assert_close, bits};
use candle_core::{Device, Tensor};
use candle_peft::core::checkpoint::{AdapterFile, CONFIG_FILE, DetachedAdapter, PICKLE_FILE, WEIGHTS_FILE};
use candle_peft::core::{Error, TensorSource};
use candle_peft::{PeftModel, registry};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The case's adapter with a pickle of other names in the place of its file.
fn old(case: &Case) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case.dir.join(CONFIG_FILE), folder.path().join(CONFIG_FILE)).unwrap();
    let name = format!("{}.bin", case.dir.file_name().unwrap().to_str().unwrap());
    fs::copy(fixtures("old_files").join(name), folder.path().join(PICKLE_FILE)).unwrap();
    folder
}

#[test]
fn pickles_with_old_names_compute_what_peft_computed() {
    for name in ["lora_default", "lora_dora", "lora_embedding", "ia3_modules_to_save"] {
        let case = Case::open(name);
        let folder = old(&case);
        let mut model = case.base_model();
        model.load_adapter("default", folder.path(), &registry().unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let logits = case.logits(&model);
        assert_eq!(bits(&logits), bits(&case.logits(&case.adapted())), "{name}");
        assert_close(name, &logits, case.expected("adapted_logits"), case.tolerance());
        // Saved, it has today's names.
        let out = tempfile::tempdir().unwrap();
        model.save_adapter("default", out.path()).unwrap();
        let names = |dir: &Path| AdapterFile::open(dir).unwrap().names();
        assert_eq!(names(out.path()), names(&case.dir), "{name}");
        let mut again = case.base_model();
        again.load_adapter("default", out.path(), &registry().unwrap()).unwrap();
        assert_eq!(bits(&case.logits(&again)), bits(&logits), "{name}");
    }
}

/// The tensors of a case under other names.
fn renamed(case: &Case, rename: impl Fn(&str) -> String) -> BTreeMap<String, Tensor> {
    let tensors = candle_core::safetensors::load(case.dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
    tensors.into_iter().map(|(key, tensor)| (rename(&key), tensor)).collect()
}

fn load(case: &Case, tensors: &BTreeMap<String, Tensor>) -> Result<PeftModel<candle_peft::models::CausalLm>, Error> {
    let text = fs::read_to_string(case.dir.join(CONFIG_FILE)).unwrap();
    let mut model = case.base_model();
    model.add_from_source("default", registry().unwrap().parse(&text).unwrap(), tensors)?;
    Ok(model)
}

#[test]
fn names_of_adapters_are_left_out_whatever_the_method() {
    for (case, ends) in [
        ("vera_default", &["vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"][..]),
        ("ia3_default", &["ia3_l"]),
        ("lora_embedding", &["lora_embedding_A", "lora_embedding_B"]),
        ("lora_dora_embedding", &["lora_magnitude_vector"]),
        ("lora_bias_conv1d", &[".bias", ".weight"]),
    ] {
        let case = Case::open(case);
        let with_name = |key: &str| match ends.iter().find(|end| key.ends_with(**end)) {
            Some(end) if end.starts_with('.') => key.replace(end, &format!(".default{end}")),
            Some(_) => format!("{key}.default"),
            None => key.to_owned(),
        };
        let tensors = renamed(&case, with_name);
        assert!(tensors.keys().any(|key| key.contains(".default")));
        assert_eq!(bits(&case.logits(&load(&case, &tensors).unwrap())), bits(&case.logits(&case.adapted())));
    }
}

/// An adapter of `LlamaModel` on `LlamaForCausalLM`, and one of `GPT2Model`.
#[test]
fn adapters_of_models_without_their_heads_are_loaded() {
    for (case, body) in [("lora_default", "model."), ("lora_gpt2_conv1d", "transformer."), ("vera_default", "model.")] {
        let case = Case::open(case);
        let tensors = renamed(&case, |key| key.replacen(&format!("base_model.model.{body}"), "base_model.model.", 1));
        assert_eq!(bits(&case.logits(&load(&case, &tensors).unwrap())), bits(&case.logits(&case.adapted())));
    }
    // Patterns for whole paths would choose other modules after the paths have changed.
    let case = Case::open("lora_default");
    let tensors = renamed(&case, |key| key.replacen("base_model.model.model.", "base_model.model.", 1));
    let text = fs::read_to_string(case.dir.join(CONFIG_FILE)).unwrap();
    for (pattern, fits) in [("layers.0.self_attn.q_proj", true), ("^layers.0.self_attn.q_proj", false)] {
        let mut fields: Map<String, Value> = serde_json::from_str(&text).unwrap();
        fields.insert("alpha_pattern".into(), json!({pattern: 3}));
        let config = registry().unwrap().parse_fields(fields).unwrap();
        let loaded = case.base_model().add_from_source("x", config, &tensors).map(drop);
        assert_eq!(loaded.is_ok(), fits, "{pattern}");
    }
}

#[test]
fn adapters_of_other_architectures_are_refused_with_what_the_model_has() {
    let case = Case::open("lora_default");
    for (from, to) in [("q_proj", "qkv_proj"), ("q_proj", "W_pack"), ("self_attn.q_proj", "attention.query_key_value")]
    {
        let error = load(&case, &renamed(&case, |key| key.replace(from, to))).err().unwrap().to_string();
        let module = to.rsplit('.').next().unwrap();
        assert!(
            error.starts_with(&format!("the checkpoint has tensors for modules that the model lacks (`{module}`): `"))
        );
        assert!(error.contains(&format!("{to}.lora_A.weight`")), "{error}");
        assert!(error.contains("; the model has embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj"), "{error}");
    }
    let gpt2 = Case::open("lora_gpt2_conv1d");
    let error = load(&case, &renamed(&gpt2, str::to_owned)).err().unwrap().to_string();
    assert!(error.contains("modules that the model lacks (`c_attn`"), "{error}");
}

/// Every config that a released version writes says what it says to that version.
#[test]
fn configs_of_every_version_are_read() {
    let mut read: HashMap<String, usize> = HashMap::new();
    for entry in fs::read_dir(fixtures("old_configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let config = registry().unwrap().parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(config.meta.unknown.is_empty(), "{name}: {:?}", config.meta.unknown);
        // Written again, every field of the file is there with the same value.
        let before: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let after: Map<String, Value> = serde_json::from_str(&config.to_json().unwrap()).unwrap();
        for (field, value) in &before {
            assert_eq!(after.get(field), Some(value), "{name}: {field}");
        }
        *read.entry(name.split_once('_').unwrap().0.to_owned()).or_default() += 1;
    }
    let versions = [("lora", 18), ("ia3", 18), ("vera", 11), ("tinylora", 3)];
    assert_eq!(read, versions.map(|(method, count)| (method.to_owned(), count)).into());
}

/// What people put into configs, and what it must come to: `Ok`, or an error that names the field.
#[test]
fn fields_count_where_they_change_an_adapter() {
    let old = fs::read_to_string(fixtures("old_configs/lora_0.4.0.json")).unwrap();
    let new = fs::read_to_string(fixtures("old_configs/lora_0.21.2.json")).unwrap();
    for (field, value, fits) in [
        ("target_modules", json!(r".*\.(q|v)_proj"), true),
        ("target_modules", json!("all-linear"), true),
        ("target_modules", json!(["v_proj", "q_proj"]), true),
        ("exclude_modules", json!(["lm_head"]), true),
        ("modules_to_save", json!([]), true),
        ("modules_to_save", json!(["lm_head"]), true),
        ("layers_to_transform", json!(0), true),
        ("layers_to_transform", json!([0, 1]), true),
        ("layers_pattern", json!(""), true),
        ("layers_pattern", json!([]), true),
        ("layers_pattern", json!("layers"), false),
        ("fan_in_fan_out", Value::Null, true),
        ("lora_alpha", json!(8.5), true),
        ("lora_dropout", json!(0), true),
        ("bias", json!("lora_only"), true),
        ("bias", json!("some"), false),
        ("init_lora_weights", json!("gaussian"), true),
        ("init_lora_weights", json!("eva"), true),
        ("init_lora_weights", json!("loftq"), false),
        ("init_lora_weights", json!("corda"), false),
        ("loftq_config", json!({"loftq_bits": 4}), true),
        ("eva_config", json!({"rho": 2.0}), true),
        ("corda_config", json!({"corda_method": "ipm"}), true),
        ("megatron_core", json!("megatron"), true),
        ("megatron_config", json!({"x": 1}), false),
        ("layer_replication", json!([[0, 2], [1, 2]]), false),
        ("trainable_token_indices", json!([1, 2]), false),
        ("qalora_group_size", json!(32), true),
        ("use_qalora", json!(true), false),
        ("target_parameters", json!(["experts.down_proj"]), false),
        ("alora_invocation_tokens", json!([1]), false),
        ("arrow_config", json!({"top_k": 3}), false),
        ("ensure_weight_tying", json!(true), false),
        ("runtime_config", json!({"ephemeral_gpu_offload": false}), true),
        ("merge_weights", json!(false), true),
        ("enable_lora", Value::Null, true),
        ("a_field_of_tomorrow", json!(null), true),
        ("task_type", Value::Null, true),
        ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}), true),
    ] {
        for text in [&old, &new] {
            let mut fields: Map<String, Value> = serde_json::from_str(text).unwrap();
            fields.insert(field.to_owned(), value.clone());
            match registry().unwrap().parse_fields(fields) {
                Ok(_) => assert!(fits, "{field}: {value} was read"),
                Err(error) => assert!(!fits && error.to_string().contains(field), "{field}: {value}: {error}"),
            }
        }
    }
}

#[test]
fn a_pickle_is_opened_without_its_base() {
    let case = Case::open("lora_default");
    let (old, new) = (old(&case), &case.dir);
    let open = |dir: &Path| DetachedAdapter::open(dir, &registry().unwrap()).unwrap();
    let paths = |adapter: &DetachedAdapter| adapter.sites.iter().map(|site| site.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&open(old.path())), paths(&open(new)));
}

/// Nothing as large as a config says is made before the file was looked at.
#[test]
fn sizes_in_a_config_are_held_against_the_tensors_first() {
    for (case, fields) in [
        ("lora_default", &["r"][..]),
        ("lora_dora", &["r"]),
        ("lora_pissa", &["r"]),
        ("lora_embedding", &["r"]),
        ("vera_default", &["r"]),
        ("vera_no_projection", &["r"]),
        ("tinylora_default", &["r", "u"]),
        ("tinylora_no_projection", &["r", "u"]),
    ] {
        let case = Case::open(case);
        let text = fs::read_to_string(case.dir.join(CONFIG_FILE)).unwrap();
        for field in fields {
            let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
            config.insert((*field).to_owned(), json!(1u64 << 45));
            let config = registry().unwrap().parse_fields(config).unwrap();
            let tensors = renamed(&case, str::to_owned);
            let loaded = case.base_model().add_from_source("x", config, &tensors).map(drop);
            // The rank of TinyLoRA is no larger than the weight's, whatever the config says.
            let error = loaded.unwrap_err().to_string();
            assert!(error.contains("has shape") || error.contains("more than the"), "{field}: {error}");
        }
    }
}
