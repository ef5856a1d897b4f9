//! Times generation: `cargo run --example bench_generation -- MODEL_DIR CASE PROMPTS SAMPLES TOKENS RUNS`.
//!
//! Prints one JSON object: seconds of each run, and resident memory with the weights alone and at its highest.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_peft::core::AdapterConfig;
use candle_peft::lora::LoraConfig;
use candle_peft::models::load_model;
use candle_peft::tinylora::{TinyLoraConfig, TinyLoraInit};
use candle_peft::train::generate::{GenerationConfig, Generator, Request};
use candle_peft::{ModuleNames, PeftModel, TargetSpec};
use candle_transformers::models::llama;
use std::env;
use std::fs;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [base, case, prompts, samples, tokens, runs] = args.as_slice() else {
        bail!("give MODEL_DIR CASE PROMPTS SAMPLES TOKENS RUNS")
    };
    let (prompts, samples) = (requests(prompts.parse()?), samples.parse()?);
    let (tokens, runs): (usize, usize) = (tokens.parse()?, runs.parse()?);
    let report = if case == "candle" {
        ensure!(prompts.len() == 1 && samples == 1, "candle-transformers generates one text at a time");
        candle_transformers(base.as_ref(), &prompts[0], tokens, runs)?
    } else {
        engine(base.as_ref(), case, &prompts, samples, tokens, runs)?
    };
    println!("{report}");
    Ok(())
}

/// The same prompts as the other side makes, of 20 to 60 tokens.
fn requests(count: usize) -> Vec<Vec<u32>> {
    let len = |prompt: usize| if count == 1 { 40 } else { 20 + prompt * 40 / (count - 1) };
    let prompt = |prompt: usize| (0..len(prompt)).map(|i| ((prompt * 1009 + i) * 7919 % 40_000) as u32 + 5).collect();
    (0..count).map(prompt).collect()
}

fn engine(
    base: &Path,
    case: &str,
    prompts: &[Vec<u32>],
    samples: usize,
    tokens: usize,
    runs: usize,
) -> Result<serde_json::Value> {
    let (adapter, dtype) = match case.strip_suffix("-bf16") {
        Some(adapter) => (adapter, DType::BF16),
        None => (case, DType::F32),
    };
    let mut model = PeftModel::new(load_model(base, dtype, &Device::Cpu)?);
    let loaded = memory("VmRSS:")?;
    let (method, merged) = match adapter.strip_suffix("-merged") {
        Some(method) => (method, true),
        None => (adapter, false),
    };
    if let Some(config) = config(method)? {
        model.add_adapter("default", config)?;
        model.eval()?;
    }
    let (mut merge, mut unmerge) = (vec![], vec![]);
    if merged {
        for _ in 0..5 {
            merge.push(seconds(|| Ok(model.merge()?))?.0);
            unmerge.push(seconds(|| Ok(model.unmerge()?))?.0);
        }
        model.merge()?;
    }
    let config = GenerationConfig { max_new_tokens: tokens, temperature: 1.0, ..GenerationConfig::default() };
    let mut generator = Generator::new(config)?;
    let requests: Vec<Request<'_>> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, samples, stream: i as u64 }).collect();
    let mut times = vec![];
    for _ in 0..runs {
        let (time, generations) = seconds(|| Ok(generator.generate(model.base(), &requests)?))?;
        ensure!(generations.iter().flatten().all(|generation| generation.ids.len() == tokens), "a text is too short");
        times.push(time);
    }
    Ok(serde_json::json!({ "seconds": times, "loaded_mib": loaded, "peak_mib": memory("VmHWM:")?,
                           "merge": merge, "unmerge": unmerge }))
}

fn config(method: &str) -> Result<Option<AdapterConfig>> {
    let all = || TargetSpec::new(ModuleNames::all_linear());
    Ok(Some(match method {
        "base" => return Ok(None),
        "tinylora" => {
            let config = TinyLoraConfig::new(all()).with_u(13).with_weight_tying(1.0);
            config.with_init_weights(TinyLoraInit::Uniform).into()
        }
        "lora" => LoraConfig::with_rank(16, all()).into(),
        other => bail!("no such case: {other}"),
    }))
}

/// One greedy text of candle-transformers' own Llama: its sampler works on vectors of its own.
fn candle_transformers(base: &Path, prompt: &[u32], tokens: usize, runs: usize) -> Result<serde_json::Value> {
    let config: llama::LlamaConfig = serde_json::from_slice(&fs::read(base.join("config.json"))?)?;
    let config = config.into_config(false);
    let weights = candle_core::safetensors::load(base.join("model.safetensors"), &Device::Cpu)?;
    let loaded = memory("VmRSS:")?;
    let model = llama::Llama::load(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu), &config)?;
    let mut times = vec![];
    for _ in 0..runs {
        let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
        let (time, ()) = seconds(|| {
            let (mut new, mut past) = (prompt.to_vec(), 0);
            for _ in 0..tokens {
                let input = Tensor::new(new.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
                let logits = model.forward(&input, past, &mut cache)?;
                past += new.len();
                new = vec![logits.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?];
            }
            Ok(())
        })?;
        times.push(time);
    }
    Ok(serde_json::json!({ "seconds": times, "loaded_mib": loaded, "peak_mib": memory("VmHWM:")? }))
}

fn seconds<T>(f: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let start = Instant::now();
    let result = f()?;
    Ok((start.elapsed().as_secs_f64(), result))
}

/// A line of the kernel's report on this process, in MiB.
fn memory(what: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(what)).context("the kernel does not say")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
