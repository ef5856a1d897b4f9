//! Trains 13 numbers of the embedded Llama, saves them, and turns them into an ordinary LoRA: `cargo run --example quickstart`.
//!
//! The embedded model adds small numbers and is right about half of the time: its training text mixed right sums with ones that
//! are off by one. The skill is there; thirteen numbers, shared by all of its linear layers, make it reliable.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::lora::to_lora;
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::train::data::{Dataset, DatasetOptions, Encoder};
use candle_peft::train::generate::{GenerationConfig, generate};
use candle_peft::train::sft::{SftConfig, Trainer};
use candle_peft::train::task::{Problem, Task};
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{ModuleNames, PeftModel, TargetSpec, TinyLlama};
use std::fs;
use std::path::Path;

const STEPS: u64 = 80;
const BATCH: usize = 32;

fn main() -> Result<()> {
    let tiny = TinyLlama::unpack()?;
    let out = tempfile::tempdir()?;
    let (adapter, lora) = (out.path().join("tinylora"), out.path().join("lora"));
    let tokenizer = Tokenizer::from_folder(tiny.path())?;
    let registry = candle_peft::registry()?;

    // 1. The base model, on sums that were in no training text.
    let task = Task::sums();
    let mut model = PeftModel::new(base(&tiny)?).with_base_name(TinyLlama::NAME);
    println!("base model           {}", accuracy(&mut model, &tokenizer, &task)?);

    // 2. One vector of 13 numbers, tied across every linear layer.
    let config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0);
    model.add_adapter("default", config)?;
    println!("TinyLoRA             {}", model.param_counts()?);

    // 3. Supervised training on right answers.
    let data = training_data(out.path(), &task, &tokenizer, &model)?;
    let options = SftConfig { steps: STEPS, batch_size: BATCH, learning_rate: 0.05, ..SftConfig::default() };
    let mut trainer = Trainer::new(&mut model, &data, options)?;
    while !trainer.is_finished() {
        let metrics = trainer.step()?;
        if metrics.step % 20 == 0 || metrics.step == 1 {
            println!("  step {:3}  loss {:.4}", metrics.step, metrics.loss);
        }
    }
    println!("with 13 numbers      {}", accuracy(&mut model, &tokenizer, &task)?);

    // 4. Files that Python's PEFT loads, and the same adapter as a LoRA that servers load: exact, without an SVD.
    model.save_adapter("default", &adapter)?;
    to_lora(&DetachedAdapter::open(&adapter, &registry)?)?.save(&lora)?;

    // 5. Both read back into fresh models agree with the trained one.
    let prompt = Tensor::new(tokenizer.encode(prompt(&task.eval_problems()[0])?)?, &Device::Cpu)?.unsqueeze(0)?;
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

/// Rows of `{"prompt", "completion"}`; the loss is on the completion only.
fn training_data(dir: &Path, task: &Task, tokenizer: &Tokenizer, model: &PeftModel<CausalLm>) -> Result<Dataset> {
    let row = |index| {
        let problem = task.problem(index);
        let row = serde_json::json!({"prompt": prompt(&problem)?, "completion": task.demonstration(&problem)});
        Ok(row.to_string())
    };
    let rows: Vec<String> = (0..STEPS * BATCH as u64).map(row).collect::<Result<_>>()?;
    let path = dir.join("sums.jsonl");
    fs::write(&path, rows.join("\n"))?;
    let shape = model.base().shape();
    let options =
        DatasetOptions { max_length: None, context_length: shape.max_positions, vocab_size: shape.vocab_size };
    Ok(Dataset::from_jsonl(&path, &Encoder { tokenizer: Some(tokenizer), chat: None }, options)?)
}

fn prompt(problem: &Problem) -> Result<&str> {
    problem.prompt.text().context("a sum is asked for in a text")
}

/// How often the answer is right, taking the likeliest tokens and drawing from all of them.
fn accuracy(model: &mut PeftModel<CausalLm>, tokenizer: &Tokenizer, task: &Task) -> Result<String> {
    let (mut right, problems) = ([0; 2], task.eval_problems());
    for (seed, problem) in problems.iter().enumerate() {
        let ids = tokenizer.encode(prompt(problem)?)?;
        for (count, temperature) in right.iter_mut().zip([0.0, 1.0]) {
            let mut stop_ids = tokenizer.stop_ids().to_vec();
            stop_ids.extend(tokenizer.encode_bare("\n")?);
            let max_new_tokens = task.max_new_tokens();
            let config =
                GenerationConfig { max_new_tokens, temperature, seed: seed as u64, stop_ids, ..Default::default() };
            let answer = generate(model, &ids, &config, &mut |_| Ok(()))?;
            *count += u32::from(task.read(problem, &tokenizer.decode(&answer.ids, false)?).strict);
        }
    }
    let [greedy, sampled] = right.map(|n| 100.0 * f64::from(n) / problems.len() as f64);
    Ok(format!("right answers: {greedy:.1} % greedy, {sampled:.1} % sampled"))
}

fn size(dir: &Path) -> Result<u64> {
    fs::read_dir(dir)?.map(|file| Ok(file?.metadata()?.len())).sum()
}
