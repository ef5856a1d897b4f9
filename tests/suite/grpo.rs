//! Reinforcement learning on the embedded model.

use candle_core::{DType, Device};
use candle_peft::models::{CausalLm, load_model};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::train::accuracy::AccuracyOptions;
use candle_peft::train::data::Encoder;
use candle_peft::train::grpo::{GrpoConfig, LossType, RolloutWeights, RunOptions, ScaleRewards, Trainer, run};
use candle_peft::train::metrics::{GrpoMetrics, Metrics};
use candle_peft::train::reward::{Reward, Rewards, Sample, Score};
use candle_peft::train::run::{COMPLETIONS_FILE, METRICS_FILE, OPTIONS_FILE, STATE_FILE};
use candle_peft::train::task::Task;
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{ModuleNames, PeftModel, TargetSpec, TinyLlama};
use std::fs;
use std::path::Path;

fn model() -> (PeftModel<CausalLm>, Tokenizer) {
    let tiny = TinyLlama::unpack().unwrap();
    let tokenizer = Tokenizer::from_folder(tiny.path()).unwrap();
    let base = load_model(tiny.path(), DType::F32, &Device::Cpu).unwrap();
    let mut model = PeftModel::new(base).with_base_name(TinyLlama::NAME);
    let config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0);
    model.add_adapter("default", config).unwrap();
    (model, tokenizer)
}

fn small() -> GrpoConfig {
    GrpoConfig { steps: 4, prompts_per_step: 4, group_size: 4, ..GrpoConfig::default() }
}

/// All steps, with what is left of them when the clock is taken away.
fn steps(config: GrpoConfig) -> Vec<GrpoMetrics> {
    let (mut model, tokenizer) = model();
    let task = Task::sums();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let mut trainer = Trainer::new(&mut model, &task, encoder, config).unwrap();
    let mut metrics = Vec::new();
    while !trainer.is_finished() {
        let mut line = trainer.step().unwrap();
        (line.seconds, line.rollout_seconds) = (0.0, 0.0);
        metrics.push(line);
    }
    metrics
}

#[test]
fn thirteen_numbers_learn_to_add_reliably() {
    let (mut model, tokenizer) = model();
    let task = Task::sums();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let config = GrpoConfig { steps: 30, prompts_per_step: 16, ..GrpoConfig::default() };
    let mut trainer = Trainer::new(&mut model, &task, encoder, config).unwrap();
    let sampled = AccuracyOptions { temperature: 1.0, samples: 2, ..AccuracyOptions::default() };
    let before = trainer.evaluate(&sampled).unwrap();
    while !trainer.is_finished() {
        let step = trainer.step().unwrap();
        assert!(step.rollout_gap < 1e-4, "generation and training agree on probabilities, not {}", step.rollout_gap);
    }
    let after = trainer.evaluate(&sampled).unwrap();
    let lift = after.strict() - before.strict();
    assert!(lift > 0.08, "{} before, {} after", before.strict(), after.strict());
    let [low, high] = after.metrics(30).strict_interval;
    assert!(low < after.strict() && after.strict() < high && high - low < 0.2);
}

#[test]
fn steps_follow_from_the_seed_alone() {
    let first = steps(small());
    assert_eq!(steps(small()), first);
    // Rows side by side change speed, and merged weights rounding only.
    assert_eq!(steps(GrpoConfig { rollout_rows: 3, ..small() }), first);
    let merged = steps(GrpoConfig { rollout_weights: RolloutWeights::Merged, ..small() });
    let close = |(a, b): (&GrpoMetrics, &GrpoMetrics)| {
        (a.reward, a.tokens) == (b.reward, b.tokens)
            && (a.loss - b.loss).abs() < 1e-4
            && (a.grad_norm - b.grad_norm).abs() < 1e-2
    };
    assert!(merged.iter().zip(&first).all(close), "{merged:?}\n{first:?}");
    assert_ne!(steps(GrpoConfig { seed: 1, ..small() }), first);
}

/// Fewer tokens at a time are the same step.
#[test]
fn micro_batches_change_rounding_alone() {
    let whole = &steps(GrpoConfig { steps: 1, beta: 0.1, ..small() })[0];
    let split = &steps(GrpoConfig { steps: 1, beta: 0.1, micro_batch_tokens: 20, ..small() })[0];
    assert!(whole.kl.unwrap() < 1e-9, "an adapter that has not moved is at the base model");
    assert!((whole.loss - split.loss).abs() < 1e-5, "{} and {}", whole.loss, split.loss);
    assert!((whole.grad_norm - split.grad_norm).abs() < 1e-3 * whole.grad_norm, "{whole:?} {split:?}");
}

#[test]
fn every_variant_takes_steps() {
    let config =
        GrpoConfig { steps: 3, num_iterations: 2, mini_batches: 2, beta: 0.05, learning_rate: 0.05, ..small() };
    for loss_type in LossType::ALL {
        for scale_rewards in ScaleRewards::ALL {
            let options = GrpoConfig { loss_type, scale_rewards, epsilon_high: Some(0.28), ..config.clone() };
            let metrics = steps(GrpoConfig { importance_cap: Some(2.0), mask_truncated_completions: true, ..options });
            let last = metrics.last().unwrap();
            assert!(last.loss.is_finite() && last.grad_norm > 0.0, "{loss_type} {scale_rewards}: {last:?}");
            assert!(last.kl.unwrap() > 0.0, "an adapter that has moved is away from the base model");
        }
    }
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Lines without the fields that depend on the clock.
fn timeless(dir: &Path) -> Vec<serde_json::Value> {
    let text = String::from_utf8(read(dir, METRICS_FILE)).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().retain(|key, _| !key.ends_with("seconds"));
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    let task = Task::sums();
    let options = RunOptions {
        accuracy: Some(AccuracyOptions { problems: Some(20), ..AccuracyOptions::default() }),
        eval_every: Some(2),
        save_every: 2,
        ..RunOptions::default()
    };
    let go = |dir: &Path, steps: u64, resume: bool| {
        let (mut model, tokenizer) = model();
        let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
        let config = GrpoConfig { steps, num_iterations: 2, ..small() };
        let mut trainer = Trainer::new(&mut model, &task, encoder, config).unwrap();
        run(&mut trainer, dir, &RunOptions { resume, ..options }, &mut |_| {}).unwrap()
    };
    let (whole, parts) = (out.path().join("whole"), out.path().join("parts"));
    let undisturbed = go(&whole, 6, false);
    assert_eq!(undisturbed.before.as_ref().map(|line| line.problems), Some(20));
    go(&parts, 4, false);
    // What a kill in the fifth step leaves: a line, some completions, and half a line.
    let mut metrics = read(&parts, METRICS_FILE);
    metrics.extend(b"{\"kind\":\"grpo\",\"st");
    fs::write(parts.join(METRICS_FILE), metrics).unwrap();
    let mut completions = read(&parts, COMPLETIONS_FILE);
    completions.extend(b"{\"step\":5,\"prompt\":\"1+1=\"}\n");
    fs::write(parts.join(COMPLETIONS_FILE), completions).unwrap();
    assert_eq!(go(&parts, 6, true).resumed_from, Some(4));
    for name in ["adapter_model.safetensors", "adapter_config.json", STATE_FILE, COMPLETIONS_FILE, OPTIONS_FILE] {
        assert!(read(&whole, name) == read(&parts, name), "{name} differs");
    }
    // The shorter run was measured at its end, which is where the longer one is measured too.
    assert_eq!(timeless(&whole), timeless(&parts));

    let (mut model, tokenizer) = model();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let other = GrpoConfig { steps: 6, group_size: 5, num_iterations: 2, ..small() };
    let mut trainer = Trainer::new(&mut model, &task, encoder, other).unwrap();
    let error =
        run(&mut trainer, &parts, &RunOptions { resume: true, ..options }, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("group_size was 4, now 5"), "{error}");
}

/// Fails for odd answers.
#[derive(Debug)]
struct Moody;

impl Reward for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn score(&self, samples: &[Sample<'_>]) -> candle_peft::train::Result<Vec<Score>> {
        let score = |sample: &Sample<'_>| match sample.completion.parse::<u32>() {
            Ok(number) if number % 2 == 0 => Score::Value(1.0),
            Ok(_) => Score::Failed("odd".to_owned()),
            Err(_) => Score::Value(0.0),
        };
        Ok(samples.iter().map(score).collect())
    }
}

#[test]
fn a_reward_that_fails_fails_for_its_row_alone() {
    let (mut model, tokenizer) = model();
    let task = Task::sums();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let trainer = Trainer::new(&mut model, &task, encoder, small()).unwrap();
    let mut trainer = trainer.with_rewards(Rewards::new().with(Moody, 2.0)).unwrap();
    let step = trainer.step().unwrap();
    assert!(step.failed_rewards > 0 && step.failed_rewards < 16);
    assert_eq!(step.reward, 2.0 * step.rewards["moody"]);
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let task = Task::sums();
    let cases: [(&str, GrpoConfig); 8] = [
        ("group_size", GrpoConfig { group_size: 1, ..small() }),
        ("temperature", GrpoConfig { temperature: 0.0, ..small() }),
        ("prompts_per_step", GrpoConfig { prompts_per_step: 0, ..small() }),
        ("epsilon", GrpoConfig { epsilon: 1.0, ..small() }),
        ("beta", GrpoConfig { beta: -1.0, ..small() }),
        ("importance_cap", GrpoConfig { importance_cap: Some(0.0), ..small() }),
        ("mini_batches", GrpoConfig { mini_batches: 17, ..small() }),
        ("top_p", GrpoConfig { top_p: 0.0, ..small() }),
    ];
    for (option, config) in cases {
        let (mut model, tokenizer) = model();
        let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
        let error = Trainer::new(&mut model, &task, encoder, config).unwrap_err().to_string();
        assert!(error.contains(&format!("invalid {option}")), "{option}: {error}");
    }
    let (mut model, _) = model();
    let error = Trainer::new(&mut model, &task, Encoder::default(), small()).unwrap_err().to_string();
    assert!(error.contains("tokenizer"), "{error}");
}

#[test]
fn metrics_can_be_read_back() {
    let line = Metrics::Grpo(steps(GrpoConfig { steps: 1, ..small() }).remove(0));
    let text = serde_json::to_string(&line).unwrap();
    assert!(text.starts_with(r#"{"kind":"grpo","step":1,"#), "{text}");
    assert_eq!(serde_json::from_str::<Metrics>(&text).unwrap(), line);
}
