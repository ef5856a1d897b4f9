//! Trains 13 numbers of the embedded Llama, saves them, and turns them into an ordinary LoRA: `cargo run --example quickstart`.
//!
//! The embedded model adds small numbers and is right about half of the time: its training text mixed right sums with ones that
//! are off by one. The skill is there; thirteen numbers, shared by all of its linear layers, make it reliable.

#![allow(clippy::print_stdout)]

mod sums;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::core::torch_rng::TorchRng;
use candle_peft::lora::to_lora;
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::train::data::{Dataset, DatasetOptions, Encoder};
use candle_peft::train::generate::{GenerationConfig, generate};
use candle_peft::train::sft::{SftConfig, Trainer};
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{ModuleNames, PeftModel, TargetSpec, TinyLlama};
use std::fs;
use std::path::Path;
use sums::{Sum, draw};

const STEPS: u64 = 80;
const BATCH: usize = 32;

fn main() -> Result<()> {
    let tiny = TinyLlama::unpack()?;
    let out = tempfile::tempdir()?;
    let (adapter, lora) = (out.path().join("tinylora"), out.path().join("lora"));
    let tokenizer = Tokenizer::from_folder(tiny.path())?;
    let registry = candle_peft::registry()?;

    // 1. The base model, on sums that were in no training text.
    let test = draw(&mut TorchRng::new(1), 200, true);
    let mut model = PeftModel::new(base(&tiny)?).with_base_name(TinyLlama::NAME);
    println!("base model           {}", accuracy(&mut model, &tokenizer, &test)?);

    // 2. One vector of 13 numbers, tied across every linear layer.
    let config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0);
    model.add_adapter("default", config)?;
    println!("TinyLoRA             {}", model.param_counts()?);

    // 3. Supervised training on right answers.
    let data = training_data(out.path(), &tokenizer, &model)?;
    let options = SftConfig { steps: STEPS, batch_size: BATCH, learning_rate: 0.05, ..SftConfig::default() };
    let mut trainer = Trainer::new(&mut model, &data, options)?;
    while !trainer.is_finished() {
        let metrics = trainer.step()?;
        if metrics.step % 20 == 0 || metrics.step == 1 {
            println!("  step {:3}  loss {:.4}", metrics.step, metrics.loss);
        }
    }
    println!("with 13 numbers      {}", accuracy(&mut model, &tokenizer, &test)?);

    // 4. Files that Python's PEFT loads, and the same adapter as a LoRA that servers load: exact, without an SVD.
    model.save_adapter("default", &adapter)?;
    to_lora(&DetachedAdapter::open(&adapter, &registry)?)?.save(&lora)?;

    // 5. Both read back into fresh models agree with the trained one.
    let prompt = Tensor::new(tokenizer.encode(&test[0].prompt())?, &Device::Cpu)?.unsqueeze(0)?;
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
fn training_data(dir: &Path, tokenizer: &Tokenizer, model: &PeftModel<CausalLm>) -> Result<Dataset> {
    let rows = draw(&mut TorchRng::new(2), STEPS as usize * BATCH, false).into_iter();
    let rows = rows.map(|s| serde_json::json!({"prompt": s.prompt(), "completion": s.answer()}).to_string());
    let path = dir.join("sums.jsonl");
    fs::write(&path, rows.collect::<Vec<_>>().join("\n"))?;
    let shape = model.base().shape();
    let options =
        DatasetOptions { max_length: None, context_length: shape.max_positions, vocab_size: shape.vocab_size };
    Ok(Dataset::from_jsonl(&path, &Encoder { tokenizer: Some(tokenizer), chat: None }, options)?)
}

/// How often the answer is right, taking the likeliest tokens and drawing from all of them.
fn accuracy(model: &mut PeftModel<CausalLm>, tokenizer: &Tokenizer, test: &[Sum]) -> Result<String> {
    let mut right = [0; 2];
    for (seed, sum) in test.iter().enumerate() {
        let prompt = tokenizer.encode(&sum.prompt())?;
        for (count, temperature) in right.iter_mut().zip([0.0, 1.0]) {
            let mut stop_ids = tokenizer.stop_ids().to_vec();
            stop_ids.extend(tokenizer.encode_bare("\n")?);
            let config =
                GenerationConfig { max_new_tokens: 3, temperature, seed: seed as u64, stop_ids, ..Default::default() };
            let answer = generate(model, &prompt, &config, &mut |_| Ok(()))?;
            *count += u32::from(tokenizer.decode(answer.text_ids(), false)? == sum.answer());
        }
    }
    let [greedy, sampled] = right.map(|n| 100.0 * f64::from(n) / test.len() as f64);
    Ok(format!("right answers: {greedy:.1} % greedy, {sampled:.1} % sampled"))
}

fn size(dir: &Path) -> Result<u64> {
    fs::read_dir(dir)?.map(|file| Ok(file?.metadata()?.len())).sum()
}
