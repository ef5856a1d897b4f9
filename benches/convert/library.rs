//! Times the steps of a conversion to LoRA inside the library: `cargo run --example bench_convert -- ADAPTER_DIR [RANK]`.
//!
//! Prints one JSON object: the median seconds of opening the folder, converting (exactly, or to a rank) and saving.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result};
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::lora::{Rank, to_lora_with};
use std::env;
use std::time::Instant;

const RUNS: usize = 9;

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let adapter = args.next().context("give the adapter folder")?;
    let rank = match args.next() {
        Some(rank) => Rank::Fixed(rank.parse()?),
        None => Rank::Exact,
    };
    let registry = candle_peft::registry()?;
    let mut seconds = [vec![], vec![], vec![]];
    let mut modules = 0;
    for _ in 0..RUNS {
        let out = tempfile::tempdir()?;
        let start = Instant::now();
        let detached = DetachedAdapter::open(&adapter, &registry)?;
        let opened = Instant::now();
        let lora = to_lora_with(&detached, rank)?;
        let converted = Instant::now();
        lora.save(out.path())?;
        modules = lora.modules.len();
        for (all, took) in seconds.iter_mut().zip([opened - start, converted - opened, converted.elapsed()]) {
            all.push(took.as_secs_f64());
        }
    }
    let [open, convert, save] = seconds.map(median);
    println!("{}", serde_json::json!({ "modules": modules, "open": open, "convert": convert, "save": save }));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
