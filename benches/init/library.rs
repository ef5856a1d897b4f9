//! Times making a fresh adapter inside the library: `cargo run --example bench_init -- MODEL_DIR OUT_DIR`.
//!
//! Prints one JSON object: the seconds of loading the model and of adding a TinyLoRA of 13 numbers to all its linear layers.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use candle_peft::models::load_model;
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::{ModuleNames, PeftModel, TargetSpec};
use std::env;
use std::time::Instant;

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let (base, out) = (args.next().context("give the model folder")?, args.next().context("give the folder to write")?);
    let start = Instant::now();
    let mut model = PeftModel::new(load_model(&base, DType::F32, &Device::Cpu)?);
    let loaded = Instant::now();
    let config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0);
    let modules = model.add_adapter("default", config)?.sites.len();
    let made = loaded.elapsed().as_secs_f64();
    model.save_adapter("default", &out)?;
    let load = (loaded - start).as_secs_f64();
    println!("{}", serde_json::json!({ "modules": modules, "load": load, "make": made }));
    Ok(())
}
