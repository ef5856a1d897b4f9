//! Times starts inside the library: `cargo run --example bench_init -- MODEL_DIR make|cached|compact|none DIR [CACHE]`.
//!
//! Prints one JSON object: the seconds of loading the model and of what follows (a TinyLoRA of 13 numbers on all its linear layers, made
//! and saved to DIR in both layouts, made with a cache, read from a compact checkpoint in DIR, or nothing), the most memory that the process
//! held while loading, what it held then, and the most that it held above that, in bytes.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use candle_peft::core::FactorCache;
use candle_peft::core::checkpoint::Layout;
use candle_peft::models::load_model;
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::{ModuleNames, PeftModel, TargetSpec};
use std::path::Path;
use std::time::Instant;
use std::{env, fs};

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [base, mode, dir, cache @ ..] = &args[..] else { bail!("give MODEL_DIR, a mode and a folder") };
    let start = Instant::now();
    let mut model = PeftModel::new(load_model(base, DType::F32, &Device::Cpu)?);
    let load = start.elapsed().as_secs_f64();
    let load_peak = peak()?;
    // From here on the peak is that of what follows: loading has taken more than the model for a moment.
    fs::write("/proc/self/clear_refs", "5")?;
    let held = peak()?;
    if let [cache] = cache {
        model = model.with_factor_cache(FactorCache::new(cache));
    }
    let loaded = Instant::now();
    match mode.as_str() {
        "make" | "cached" => {
            let config =
                TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0);
            model.add_adapter("default", config)?;
        }
        "compact" => {
            model.load_adapter("default", Path::new(dir).join("compact"), &candle_peft::registry()?)?;
        }
        "none" => {}
        other => bail!("there is no mode {other}"),
    }
    let more = loaded.elapsed().as_secs_f64();
    let above_model = peak()? - held;
    if mode == "make" {
        model.save_adapter("default", Path::new(dir).join("full"))?;
        model.save_adapter_as("default", Path::new(dir).join("compact"), Layout::Compact)?;
    }
    println!(
        "{}",
        serde_json::json!({ "load": load, "more": more, "load_peak": load_peak, "held": held, "above_model": above_model })
    );
    Ok(())
}

/// The most memory that this process held so far, where Linux tells.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
