//! The policy loss against NumPy.

use crate::fixtures::json;
use peft_train::grpo::{LossType, Normalizer, Objective, ScaleRewards, TokenProbabilities, advantages};
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

#[test]
fn losses_of_every_kind_are_those_of_numpy() {
    let file: Value = json("grpo/cases.json");
    let [new, old, rollout, reference] = ["new", "old", "rollout", "reference"].map(|name| rows(&file[name]));
    let rewards: Vec<f64> = rows(&file["rewards"]).concat();
    let max_tokens = file["max_tokens"].as_u64().unwrap() as usize;
    for case in file["cases"].as_array().unwrap() {
        let text = |name: &str| case[name].as_str().unwrap();
        let number = |name: &str| case[name].as_f64().unwrap();
        let scale: ScaleRewards = text("scale_rewards").parse().unwrap();
        let group = rewards.len() / file["prompts"].as_array().unwrap().len();
        let advantages = advantages(&rewards, group, scale);
        for (ours, numpy) in advantages.iter().zip(numbers(&case["advantages"])) {
            assert!((ours - numpy).abs() < 1e-12, "{ours} is not {numpy}");
        }
        let masked = case["mask_truncated_completions"].as_bool().unwrap();
        let counts = |row: &&usize| !(masked && new[**row].len() == max_tokens);
        let counted: Vec<usize> = (0..new.len()).collect::<Vec<_>>().iter().filter(counts).copied().collect();
        let tokens = counted.iter().map(|row| new[*row].len()).sum();
        let loss_type: LossType = text("loss_type").parse().unwrap();
        let normalizer = Normalizer::new(loss_type, new.len(), max_tokens).with_tokens(tokens).with_step(tokens, 1);
        let objective = Objective::new(number("epsilon"))
            .with_epsilon_high(number("epsilon_high"))
            .with_beta(number("beta"))
            .with_importance_cap(case["importance_cap"].as_f64());
        let (mut loss, mut low, mut high, mut kl) = (0.0, 0, 0, 0.0);
        for &row in &counted {
            if number("beta") == 0.0 && advantages[row] == 0.0 {
                continue;
            }
            let old = case["old"].as_bool().unwrap().then_some(old[row].as_slice());
            let tokens =
                TokenProbabilities { new: &new[row], old, reference: Some(&reference[row]), rollout: &rollout[row] };
            let completion = objective.completion(tokens, advantages[row]);
            loss += normalizer.weight(new[row].len()) * completion.loss;
            low += completion.clipped_low as u64;
            high += completion.clipped_high as u64;
            kl += completion.kl;
        }
        assert!((loss - number("loss")).abs() < 1e-12, "{loss_type} {scale}: {loss} is not {}", number("loss"));
        assert!((kl - number("kl")).abs() < 1e-9, "{loss_type} {scale}: {kl} is not {}", number("kl"));
        assert_eq!((Some(low), Some(high)), (case["clipped_low"].as_u64(), case["clipped_high"].as_u64()));
    }
}

/// The slopes against differences of the loss, on both sides of the bounds.
#[test]
fn slopes_are_those_of_the_loss() {
    let objective = Objective::new(0.2).with_epsilon_high(0.3).with_beta(0.1).with_importance_cap(Some(1.5));
    let (old, reference, rollout) = ([-1.0; 5], [-1.3; 5], [-1.2; 5]);
    let new = [-1.6, -1.1, -1.0, -0.9, -0.4];
    for advantage in [-0.7, 0.0, 1.2] {
        let of = |new: &[f64]| {
            let (old, reference) = (Some(old.as_slice()), Some(reference.as_slice()));
            objective.completion(TokenProbabilities { new, old, reference, rollout: &rollout }, advantage)
        };
        let slopes = of(&new).slopes;
        for token in 0..new.len() {
            let moved = |by: f64| {
                let mut new = new;
                new[token] += by;
                of(&new).loss
            };
            let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((slopes[token] - slope).abs() < 1e-6, "token {token}: {} is not {slope}", slopes[token]);
        }
    }
    let clipped = |advantage| {
        let tokens = TokenProbabilities { new: &new, old: Some(&old), reference: None, rollout: &old };
        let completion = Objective::new(0.2).completion(tokens, advantage);
        (completion.clipped_low, completion.clipped_high, completion.slopes)
    };
    let (low, high, slopes) = clipped(1.0);
    assert_eq!((low, high), (0, 1));
    assert_eq!(slopes[4], 0.0, "a token that is likely enough is not raised further");
    let (low, high, slopes) = clipped(-1.0);
    assert_eq!((low, high), (1, 0));
    assert_eq!(slopes[0], 0.0, "a token that is unlikely enough is not lowered further");
}

#[test]
fn a_group_of_equal_rewards_teaches_nothing() {
    for scale in ScaleRewards::ALL {
        let advantages = advantages(&[0.1, 0.1, 0.1, 0.0, 1.0, 0.0], 3, scale);
        assert_eq!(advantages[..3], [0.0; 3], "{scale}");
        assert!(advantages[4] > 0.0 && advantages[3] < 0.0, "{scale}");
        assert!(advantages.iter().sum::<f64>().abs() < 1e-12, "{scale}");
    }
    assert_eq!(advantages(&[0.0, 1.0], 2, ScaleRewards::None), [-0.5, 0.5]);
}

#[test]
fn names_are_those_of_trl() {
    for (name, kind) in
        [("grpo", LossType::Grpo), ("dr_grpo", LossType::DrGrpo), ("dapo", LossType::Dapo), ("bnpo", LossType::Bnpo)]
    {
        assert_eq!((name.parse::<LossType>().unwrap(), kind.to_string()), (kind, name.to_owned()));
    }
    let error = "ppo".parse::<LossType>().unwrap_err().to_string();
    assert!(error.contains("loss_type") && error.contains("dr_grpo"), "{error}");
    assert!("all".parse::<ScaleRewards>().unwrap_err().to_string().contains("batch"));
}
