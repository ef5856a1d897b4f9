//! Generation.

mod adapters;
mod batches;
mod processors;
mod stop;

use crate::tiny;
use candle_core::{Device, Tensor};
use peft_models::{CausalLanguageModel, ForwardOptions};
use peft_train::Result;
use peft_train::generate::{FinishReason, Generation, GenerationConfig, generate};

const PROMPT: [u32; 4] = [1, 17, 42, 5];

fn run(config: &GenerationConfig) -> Result<Generation> {
    generate(&mut tiny::adapted(), &PROMPT, config, &mut |_| Ok(()))
}

fn sampling(seed: u64) -> GenerationConfig {
    GenerationConfig { max_new_tokens: 24, temperature: 1.3, seed, ..GenerationConfig::default() }
}

/// The likeliest tokens, from a pass over the whole text for each.
fn argmax_of_full_passes(count: usize) -> Vec<u32> {
    let mut model = tiny::adapted();
    model.eval().unwrap();
    let mut ids = PROMPT.to_vec();
    for _ in 0..count {
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.base().forward(&input, ForwardOptions::all()).unwrap();
        let last = logits.get(0).unwrap().get(ids.len() - 1).unwrap();
        ids.push(last.argmax(0).unwrap().to_scalar().unwrap());
    }
    ids.split_off(PROMPT.len())
}

#[test]
fn greedy_text_is_the_argmax_of_full_passes() {
    let mut seen = vec![];
    let config = GenerationConfig { max_new_tokens: 20, ..GenerationConfig::default() };
    let generation = generate(&mut tiny::adapted(), &PROMPT, &config, &mut |id| {
        seen.push(id);
        Ok(())
    })
    .unwrap();
    assert_eq!(generation.ids, argmax_of_full_passes(20));
    assert_eq!(generation.ids, seen);
    assert_eq!(generation.finish_reason, FinishReason::Length);
}

#[test]
fn a_stop_token_ends_the_text_and_is_no_part_of_it() {
    let free = argmax_of_full_passes(20);
    let stop = free[5];
    let expected: Vec<u32> = free.iter().copied().take_while(|id| *id != stop).collect();
    let config = GenerationConfig { max_new_tokens: 20, stop_ids: vec![stop], ..GenerationConfig::default() };
    let generation = run(&config).unwrap();
    assert_eq!((generation.text_ids(), generation.finish_reason), (expected.as_slice(), FinishReason::Stop));
    assert_eq!(generation.ids, [expected.as_slice(), &[stop]].concat());
}

#[test]
fn the_text_ends_with_the_models_positions() {
    let config = GenerationConfig { max_new_tokens: 1000, ..GenerationConfig::default() };
    let generation = run(&config).unwrap();
    assert_eq!(generation.finish_reason, FinishReason::Context);
    // The last token stands behind the last position.
    assert_eq!(generation.ids.len(), tiny::MAX_POSITIONS - PROMPT.len() + 1);
}

#[test]
fn samples_follow_from_the_seed() {
    let [first, again, other] = [7, 7, 8].map(|seed| run(&sampling(seed)).unwrap().ids);
    assert_eq!(first, again);
    assert_ne!(first, other);
    // A shorter text is the beginning of a longer one.
    let shorter = run(&GenerationConfig { max_new_tokens: 9, ..sampling(7) }).unwrap().ids;
    assert_eq!(shorter, first[..9]);
}

#[test]
fn a_tiny_nucleus_is_greedy() {
    let nucleus = run(&GenerationConfig { top_p: 1e-6, ..sampling(3) }).unwrap();
    assert_eq!(nucleus.ids, argmax_of_full_passes(24));
    let cold = run(&GenerationConfig { temperature: 1e-6, ..sampling(3) }).unwrap();
    assert_eq!(cold.ids, argmax_of_full_passes(24));
}

/// Draws the first token many times and compares with the probabilities that the logits stand for.
#[test]
fn samples_have_the_models_distribution() {
    let mut model = tiny::adapted();
    model.eval().unwrap();
    let input = Tensor::new(&PROMPT, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = model.base().forward(&input, ForwardOptions::last()).unwrap();
    let logits: Vec<f64> =
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| f64::from(*x)).collect();
    let (temperature, top_p, draws) = (0.4, 0.8, 600);
    let total: f64 = logits.iter().map(|logit| (logit / temperature).exp()).sum();
    let mut tokens: Vec<(usize, f64)> = logits.iter().map(|l| (l / temperature).exp() / total).enumerate().collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut mass = 0.0;
    let kept = tokens.iter().position(|(_, p)| {
        mass += p;
        mass >= top_p
    });
    tokens.truncate(kept.unwrap() + 1);
    assert!(tokens.len() > 3, "the test needs a choice");

    let mut counts = [0usize; tiny::VOCAB_SIZE];
    for seed in 0..draws {
        let config = GenerationConfig { max_new_tokens: 1, temperature, top_p, seed, ..GenerationConfig::default() };
        let generation = generate(&mut model, &PROMPT, &config, &mut |_| Ok(())).unwrap();
        counts[generation.ids[0] as usize] += 1;
    }
    assert_eq!(tokens.iter().map(|(id, _)| counts[*id]).sum::<usize>(), draws as usize, "a token outside the nucleus");
    for (id, p) in &tokens {
        let (p, found) = (p / mass, counts[*id] as f64);
        let (mean, deviation) = (p * draws as f64, (p * (1.0 - p) * draws as f64).sqrt());
        assert!((found - mean).abs() < 4.5 * deviation, "token {id}: {found} draws, expected {mean}");
    }
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let config = GenerationConfig::default();
    let mut model = tiny::adapted();
    let mut refuse = |prompt: &[u32], config: &GenerationConfig| {
        generate(&mut model, prompt, config, &mut |_| Ok(())).unwrap_err().to_string()
    };
    assert!(refuse(&[], &config).contains("no tokens"));
    assert!(refuse(&[1, 64], &config).contains("token id 64 is out of range"));
    assert!(refuse(&[1; 65], &config).contains("the model takes 64"));
    assert!(refuse(&[1], &GenerationConfig { top_p: 0.0, ..config.clone() }).contains("top_p"));
    assert!(refuse(&[1], &GenerationConfig { temperature: f64::NAN, ..config.clone() }).contains("temperature"));
}
