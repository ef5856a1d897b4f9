//! What the options leave of a distribution, against transformers' logits processors (`tests/fixtures/generation/generate.py`).

use candle_core::{Device, Tensor};
use peft_nn::{Draw, sample};
use peft_train::generate::GenerationConfig;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    seen: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    options: Options,
    /// Of each row of the logits.
    probabilities: Vec<Vec<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

/// As many numbers between 0 and 1, evenly spaced.
const DRAWS: usize = 20_000;

#[test]
fn options_are_those_of_transformers() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../fixtures/generation/cases.json")).unwrap();
    assert!(fixture.cases.len() > 10);
    for Case { options, probabilities } in &fixture.cases {
        let default = GenerationConfig::default();
        let config = GenerationConfig {
            temperature: options.temperature.unwrap_or(1.0),
            top_k: options.top_k,
            top_p: options.top_p.unwrap_or(default.top_p),
            min_p: options.min_p.unwrap_or(default.min_p),
            repetition_penalty: options.repetition_penalty.unwrap_or(default.repetition_penalty),
            ..default
        };
        for ((logits, seen), expected) in fixture.logits.iter().zip(&fixture.seen).zip(probabilities) {
            let logits = Tensor::new(logits.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let draws: Vec<Draw<'_>> =
                (0..DRAWS).map(|i| Draw { row: 0, uniform: (i as f64 + 0.5) / DRAWS as f64, seen }).collect();
            let mut counts = vec![0usize; expected.len()];
            for sampled in sample(&logits, &config.sampling(), &draws).unwrap() {
                counts[sampled.id as usize] += 1;
            }
            for (id, (count, expected)) in counts.into_iter().zip(expected).enumerate() {
                let share = count as f64 / DRAWS as f64;
                assert!(*expected > 0.0 || count == 0, "token {id} is cut by {options:?}");
                // Evenly spaced draws count a share up to one draw.
                assert!(
                    (share - expected).abs() < 1.1 / DRAWS as f64,
                    "token {id}: {share}, not {expected}, {options:?}"
                );
            }
        }
    }
}
