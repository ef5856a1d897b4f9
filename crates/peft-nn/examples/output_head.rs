//! Times the loss of an output head with its backward pass, and reads the memory that it took above its operands:
//! `cargo run -p candle-peft -p peft-nn --example output_head -- POSITIONS VOCABULARY HIDDEN_SIZE RUNS`, or build and start it.
//!
//! Prints one line: milliseconds and those of all threads together on a processor, which other programs disturb less, both of the fastest
//! run, and MiB.
#![allow(missing_docs, clippy::print_stdout)]

use std::time::Instant;
use std::{env, fs};

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use peft_nn::{IGNORE_INDEX, WeightLayout, backward, linear_cross_entropy};

fn main() -> Result<()> {
    let numbers: Vec<usize> = env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let &[positions, vocabulary, hidden_size, runs] = numbers.as_slice() else {
        return Err(Error::msg("give POSITIONS VOCABULARY HIDDEN_SIZE RUNS"));
    };
    let random = |shape, deviation| Tensor::randn(0f32, deviation, shape, &Device::Cpu);
    let hidden = Var::from_tensor(&random((positions, hidden_size), 1.0)?)?;
    let weight = random((vocabulary, hidden_size), 0.05)?;
    let labels: Vec<i64> = (0..positions).map(|i| (i * 7919 % vocabulary) as i64).collect();
    let labels = Tensor::from_vec(labels, positions, &Device::Cpu)?;
    // Peaks from before are forgotten.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = memory()?;
    let (mut elapsed, mut busy) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..runs.max(1) {
        let (start, busy_before) = (Instant::now(), on_processors()?);
        let loss = linear_cross_entropy(&hidden, &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?.mean()?;
        let grads = backward(&loss)?;
        elapsed = elapsed.min(start.elapsed().as_secs_f64() * 1e3);
        busy = busy.min(on_processors()? - busy_before);
        grads.get(&hidden).ok_or_else(|| Error::msg("no gradient"))?.to_dtype(DType::F32)?;
    }
    println!("{elapsed:.1} ms, {busy:.1} ms on processors, {:.1} MiB", memory()? - before);
    Ok(())
}

/// The most memory that the process took, in MiB.
fn memory() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| Error::msg("the kernel does not say how much memory the process takes"))
}

/// Milliseconds that the threads of this process ran so far.
fn on_processors() -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let of_task = fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += of_task.split_whitespace().next().and_then(|time| time.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(nanoseconds / 1e6)
}
