//! The targets of configs that name none.

use crate::methods::Bottleneck;
use peft_core::{ModuleNames, PeftModel, TargetSpec};
use peft_testkit::skeleton::Skeleton;

fn sites(model: Skeleton) -> Result<Vec<String>, String> {
    let mut model = PeftModel::new(model);
    let adapter = model.add_adapter("default", Bottleneck::on(TargetSpec::default())).map_err(|e| e.to_string())?;
    Ok(adapter.sites.iter().map(|(path, _)| path.clone()).collect())
}

fn with(model_type: &str, paths: &[&str]) -> Skeleton {
    paths.iter().fold(Skeleton::new().of_type(model_type), |model, path| model.linear(path).unwrap())
}

#[test]
fn the_usual_targets_follow_from_the_model_type() {
    let attention = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"];
    assert_eq!(sites(Skeleton::llama(1).unwrap()).unwrap(), attention);
    let all = ["x.q_proj", "x.k_proj", "x.v_proj", "x.o_proj", "x.c_attn", "x.fc1", "x.fc2", "x.query_key_value"];
    for model_type in ["qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "opt", "llama4", "stablelm"] {
        assert_eq!(sites(with(model_type, &all)).unwrap(), ["x.q_proj", "x.v_proj"], "{model_type}");
    }
    assert_eq!(sites(with("gpt2", &all)).unwrap(), ["x.c_attn"]);
    assert_eq!(sites(with("gpt_neox", &all)).unwrap(), ["x.query_key_value"]);
    assert_eq!(sites(with("phi", &all)).unwrap(), ["x.q_proj", "x.v_proj", "x.fc1", "x.fc2"]);
    assert_eq!(sites(with("nemotron_h", &all)).unwrap(), all[..4]);
    let gemma = ["model.language_model.layers.0.self_attn.q_proj", "model.vision_tower.layers.0.self_attn.q_proj"];
    assert_eq!(sites(with("gemma4", &gemma)).unwrap(), gemma[..1]);
}

#[test]
fn without_usual_targets_they_must_be_named() {
    for model_type in ["phi3", "qwen2_moe", "unheard-of"] {
        let error = sites(with(model_type, &["q_proj"])).unwrap_err();
        assert!(error.contains("`target_modules` must be set") && error.contains(model_type), "{error}");
    }
    assert!(sites(Skeleton::new().linear("q_proj").unwrap()).unwrap_err().contains("this model has no usual targets"));
}

#[test]
fn the_usual_targets_are_recorded() {
    let mut model = PeftModel::new(Skeleton::llama(1).unwrap());
    let adapter = model.add_adapter("default", Bottleneck::on(TargetSpec::default())).unwrap();
    assert_eq!(adapter.config.method.targets().target_modules, Some(ModuleNames::list(["q_proj", "v_proj"])));
}
