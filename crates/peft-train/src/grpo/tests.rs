//! The loss of a step and its gradient on a model with an adapter, against NumPy and PyTorch.
#![allow(clippy::unwrap_used)]

use super::policy::Policy;
use super::rows::{Row, Rows};
use super::{GrpoConfig, advantages};
use crate::optim::{Gradients, Trainables};
use candle_core::{DType, Device};
use peft_core::{PeftModel, Registry};
use peft_models::{CausalLm, load_model};
use peft_tinylora::TinyLoraConfig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// The policy of the cases: an adapter that PEFT wrote, on its base model.
fn policy() -> PeftModel<CausalLm> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let base = load_model(fixtures.join("base_llama"), DType::F32, &Device::Cpu).unwrap();
    let mut registry = Registry::new();
    registry.register::<TinyLoraConfig>().unwrap();
    let mut model = PeftModel::new(base);
    model.load_adapter("default", fixtures.join("tinylora_all_linear_tied"), &registry).unwrap();
    model.train().unwrap();
    model
}

fn rows(file: &Value, case: &Value, config: &GrpoConfig) -> Rows {
    let (prompts, completions) =
        (numbers::<Vec<Vec<u32>>>(&file["prompts"]), numbers::<Vec<Vec<Vec<u32>>>>(&file["completions"]));
    let (old, rollout) = (numbers::<Vec<Vec<f64>>>(&file["old"]), numbers::<Vec<Vec<f64>>>(&file["rollout"]));
    let rewards = numbers::<Vec<Vec<f64>>>(&file["rewards"]).concat();
    let group = completions[0].len();
    let advantages = advantages(&rewards, group, config.scale_rewards);
    let (mut rows, mut tokens) = (BTreeMap::new(), Vec::new());
    for (at, ids) in completions.concat().into_iter().enumerate() {
        let counts = !(config.mask_truncated_completions && Some(ids.len()) == config.max_new_tokens);
        tokens.push(if counts { ids.len() } else { 0 });
        if counts && (config.beta > 0.0 || advantages[at] != 0.0) {
            let old = case["old"].as_bool().unwrap().then(|| old[at].clone());
            let (place, prompt) = (at / group, prompts[at / group].clone());
            let (advantage, rollout) = (advantages[at], rollout[at].clone());
            rows.insert(at, Row { place, prompt, ids, advantage, rollout, old, reference: None });
        }
    }
    Rows { rows, tokens }
}

#[test]
fn a_step_has_the_loss_of_numpy_and_the_gradient_of_pytorch() {
    let text = include_str!("../../tests/fixtures/grpo/cases.json");
    let file: Value = serde_json::from_str(text).unwrap();
    for case in file["cases"].as_array().unwrap() {
        let number = |name: &str| case[name].as_f64().unwrap();
        let config = GrpoConfig {
            max_new_tokens: Some(numbers(&file["max_tokens"])),
            temperature: file["temperature"].as_f64().unwrap(),
            loss_type: case["loss_type"].as_str().unwrap().parse().unwrap(),
            scale_rewards: case["scale_rewards"].as_str().unwrap().parse().unwrap(),
            epsilon: number("epsilon"),
            epsilon_high: Some(number("epsilon_high")),
            beta: number("beta"),
            importance_cap: case["importance_cap"].as_f64(),
            mask_truncated_completions: case["mask_truncated_completions"].as_bool().unwrap(),
            ..GrpoConfig::default()
        };
        // All at once, and a few tokens at a time.
        for micro_batch_tokens in [2048, 9] {
            let config = GrpoConfig { micro_batch_tokens, ..config.clone() };
            let mut model = policy();
            let mut rows = rows(&file, case, &config);
            if config.beta > 0.0 {
                model.disable().unwrap();
                let reference = Policy { model: &model, config: &config }.log_probs(&rows).unwrap();
                model.enable().unwrap();
                rows.set_reference(reference);
            }
            let mut gradients = Gradients::new(Trainables::new(model.trainable()).unwrap());
            let completions: Vec<usize> = (0..rows.tokens.len()).collect();
            let normalizer = rows.normalizer(&completions, config.max_new_tokens.unwrap(), &config);
            let policy = Policy { model: &model, config: &config };
            let update = policy.update(&mut rows, &completions, normalizer, &mut gradients, &mut |_| Ok(())).unwrap();

            let loss = number("loss");
            assert!((update.loss - loss).abs() < 1e-6, "{}: {} is not {loss}", config.loss_type, update.loss);
            let kl = if config.beta > 0.0 { number("kl") } else { 0.0 };
            assert!((update.kl - kl).abs() < 1e-4, "{} is not {kl}", update.kl);
            assert_eq!(
                (update.clipped_low as f64, update.clipped_high as f64),
                (number("clipped_low"), number("clipped_high"))
            );
            let expected: Vec<f64> = numbers(&case["gradient"]);
            let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
            let (_, gradient) = gradients.iter().next().unwrap();
            let gradient = gradient.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(gradient.len(), expected.len());
            for (ours, torch) in gradient.iter().zip(&expected) {
                assert!((ours - torch).abs() < 1e-4 * largest, "{}: {ours} is not {torch}", config.loss_type);
            }
            let all_known = rows.rows.values().all(|row| row.old.is_some());
            assert!(all_known, "what the first update saw is kept for the next ones");
        }
    }
}
