//! Trains 13 numbers of the embedded Llama by reinforcement learning, saves them, and turns them into an ordinary LoRA:
//! `cargo run --example quickstart`.
//!
//! The embedded model adds small numbers and is right about half of the time: its training text mixed right sums with ones that
//! are off by one. The skill is there. Nobody shows the model a right answer here: it answers, is told which answers were right, and
//! thirteen numbers, shared by the linear layers of all its feed-forward parts, make those likelier.

#![allow(clippy::print_stdout)]

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::lora::to_lora;
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::train::accuracy::AccuracyOptions;
use candle_peft::train::data::Encoder;
use candle_peft::train::grpo::{GrpoConfig, Trainer};
use candle_peft::train::schedule::ScheduleKind;
use candle_peft::train::task::Task;
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{ModuleNames, PeftModel, TargetSpec, TinyLlama};
use std::fs;
use std::path::Path;

fn main() -> Result<()> {
    let tiny = TinyLlama::unpack()?;
    let out = tempfile::tempdir()?;
    let (adapter, lora) = (out.path().join("tinylora"), out.path().join("lora"));
    let tokenizer = Tokenizer::from_folder(tiny.path())?;
    let registry = candle_peft::registry()?;

    // 1. Sums, a tenth of which was in no training text, and the base model.
    let task = Task::sums();
    let mut model = PeftModel::new(base(&tiny)?).with_base_name(TinyLlama::NAME);

    // 2. One vector of 13 numbers, tied across all layers.
    let targets = TargetSpec::new(ModuleNames::list(["gate_proj", "up_proj", "down_proj"]));
    model.add_adapter("default", TinyLoraConfig::new(targets).with_u(13).with_weight_tying(1.0))?;
    println!("TinyLoRA             {}", model.param_counts()?);

    // 3. Reinforcement learning: 32 prompts a step, 8 answers to each, 1 for a right answer and 0 for a wrong one.
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let config =
        GrpoConfig { steps: 300, prompts_per_step: 32, schedule: ScheduleKind::Linear, ..GrpoConfig::default() };
    let mut trainer = Trainer::new(&mut model, &task, encoder, config)?;
    println!("before               {}", accuracy(&mut trainer)?);
    while !trainer.is_finished() {
        let metrics = trainer.step()?;
        if metrics.step % 60 == 0 || metrics.step == 1 {
            println!("  step {:3}  mean reward {:.3}", metrics.step, metrics.reward);
        }
    }
    println!("after                {}", accuracy(&mut trainer)?);

    // 4. Files that Python's PEFT loads, and the same adapter as a LoRA that servers load: exact, without an SVD.
    model.save_adapter("default", &adapter)?;
    to_lora(&DetachedAdapter::open(&adapter, &registry)?)?.save(&lora)?;

    // 5. Both read back into fresh models agree with the trained one.
    let prompt = encoder.prompt_ids(&task.eval_problems()[0].prompt)?;
    let prompt = Tensor::new(prompt, &Device::Cpu)?.unsqueeze(0)?;
    model.eval()?;
    let trained = model.base().forward(&prompt, ForwardOptions::all())?;
    for (name, dir) in [("TinyLoRA read back", &adapter), ("LoRA read back", &lora)] {
        let mut again = PeftModel::new(base(&tiny)?);
        again.load_adapter("default", dir, &registry)?;
        let logits = again.base().forward(&prompt, ForwardOptions::all())?;
        let difference = (logits - &trained)?.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("{name:20} logits differ by at most {difference:.1e}; {} bytes", size(dir)?);
        ensure!(difference < 1e-4, "{name}: the logits differ by {difference}");
    }
    Ok(())
}

fn base(tiny: &TinyLlama) -> Result<CausalLm> {
    Ok(load_model(tiny.path(), DType::F32, &Device::Cpu)?)
}

/// How often held-out sums are answered right, taking the likeliest tokens and drawing from all of them.
fn accuracy(trainer: &mut Trainer<'_, CausalLm>) -> Result<String> {
    let greedy = trainer.evaluate(&AccuracyOptions::default())?;
    let sampled = trainer.evaluate(&AccuracyOptions { temperature: 1.0, samples: 4, ..AccuracyOptions::default() })?;
    let [low, high] = greedy.metrics(0).strict_interval.map(|share| 100.0 * share);
    let (greedy, sampled) = (100.0 * greedy.strict(), 100.0 * sampled.strict());
    Ok(format!("right answers: {greedy:.1} % greedy ({low:.0} to {high:.0}), {sampled:.1} % sampled"))
}

fn size(dir: &Path) -> Result<u64> {
    fs::read_dir(dir)?.map(|file| Ok(file?.metadata()?.len())).sum()
}
