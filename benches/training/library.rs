//! Times training steps: `cargo run --example bench_training -- MODEL_DIR CASE BATCH LENGTH STEPS`.
//!
//! Prints one JSON object: seconds of each step, the losses, and resident memory with the weights alone and at its highest.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, ParamsAdamW};
use candle_peft::core::AdapterConfig;
use candle_peft::lora::LoraConfig;
use candle_peft::models::load_model;
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::train::data::Batch;
use candle_peft::train::loss::NextTokenLoss;
use candle_peft::{ModuleNames, PeftModel, TargetSpec};
use std::env;
use std::fs;
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [base, case, batch, length, steps] = args.as_slice() else { bail!("give MODEL_DIR CASE BATCH LENGTH STEPS") };
    let (batch, length, steps): (usize, usize, usize) = (batch.parse()?, length.parse()?, steps.parse()?);
    let dtype = if case.ends_with("-bf16") { DType::BF16 } else { DType::F32 };
    let mut model = PeftModel::new(load_model(base, dtype, &Device::Cpu)?);
    let loaded = memory("VmRSS:")?;
    model.add_adapter("default", config(case.trim_end_matches("-bf16"))?)?;
    let batch = tokens(batch, length)?;
    let mut optimizer = candle_nn::AdamW::new(model.vars(), ParamsAdamW { lr: 1e-4, ..ParamsAdamW::default() })?;
    let (mut seconds, mut losses) = (vec![], vec![]);
    for _ in 0..steps {
        let start = Instant::now();
        let loss = NextTokenLoss::of_batch(model.base(), &batch)?.mean()?;
        let grads = candle_peft::nn::backward(&loss)?;
        optimizer.step(&grads)?;
        losses.push(loss.to_scalar::<f32>()?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let peak = memory("VmHWM:")?;
    println!(
        "{}",
        serde_json::json!({ "seconds": seconds, "losses": losses, "loaded_mib": loaded, "peak_mib": peak,
                            "trainable": model.param_counts()?.trainable })
    );
    Ok(())
}

fn config(case: &str) -> Result<AdapterConfig> {
    let all = || TargetSpec::new(ModuleNames::all_linear());
    Ok(match case {
        "tinylora" => TinyLoraConfig::new(all()).with_u(13).with_weight_tying(1.0).into(),
        "lora" => LoraConfig::with_rank(16, TargetSpec::new(ModuleNames::list(["q_proj", "v_proj"]))).into(),
        "lora-all" => LoraConfig::with_rank(16, all()).into(),
        other => bail!("no such case: {other}"),
    })
}

/// The same numbers as the other side makes.
fn tokens(batch: usize, length: usize) -> Result<Batch> {
    let ids: Vec<u32> = (0..batch * length).map(|i| (i * 7919 % 40_000) as u32 + 5).collect();
    let input_ids = Tensor::from_vec(ids, (batch, length), &Device::Cpu)?;
    let labels = input_ids.to_dtype(DType::I64)?;
    let attention_mask = input_ids.ones_like()?.to_dtype(DType::U8)?;
    let token_count = batch * length;
    Ok(Batch { input_ids, labels, attention_mask, token_count, target_count: token_count - batch })
}

/// A line of the kernel's report on this process, in MiB.
fn memory(what: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(what)).context("the kernel does not say")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
