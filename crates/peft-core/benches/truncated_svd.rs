//! Times truncated decompositions: `cargo bench --profile dev --workspace --bench truncated_svd`. Prints a JSON object per line.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use candle_core::{Device, Tensor};
use peft_core::linalg::truncated_svd;
use peft_core::torch_rng::TorchRng;
use std::time::Instant;

/// The shapes of Llama-3.2-1B's layers.
const SHAPES: [(usize, usize); 4] = [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)];
const RUNS: usize = 3;

fn normal(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(TorchRng::new(seed).normal(0.0, 1.0, rows * cols), (rows, cols), &Device::Cpu).unwrap()
}

/// Singular values that fall like 1, 1/2, 1/3, ...: sums of outer products of nearly orthogonal random vectors.
fn decaying(rows: usize, cols: usize) -> Tensor {
    let side = rows.min(cols);
    let values: Vec<f32> = (0..side).map(|i| 1.0 / (1.0 + i as f32)).collect();
    let values = Tensor::from_vec(values, side, &Device::Cpu).unwrap();
    let left = (normal(rows, side, 2) / (rows as f64).sqrt()).unwrap().broadcast_mul(&values).unwrap();
    left.matmul(&(normal(side, cols, 3) / (cols as f64).sqrt()).unwrap()).unwrap()
}

fn main() {
    for (rows, cols) in SHAPES {
        for (spectrum, weight) in [("Gaussian", normal(rows, cols, 1)), ("1 / i", decaying(rows, cols))] {
            for r in [2, 16] {
                let mut seconds = vec![];
                let mut certificate = None;
                for _ in 0..RUNS {
                    let start = Instant::now();
                    certificate = Some(truncated_svd(&weight, r).unwrap().certificate);
                    seconds.push(start.elapsed().as_secs_f64());
                }
                seconds.sort_by(f64::total_cmp);
                let certificate = certificate.unwrap();
                let worst = certificate.left.iter().chain(&certificate.right).copied().fold(0.0, f64::max);
                println!(
                    r#"{{"shape": [{rows}, {cols}], "spectrum": "{spectrum}", "r": {r}, "seconds": {:.5}, "residual": {worst:.1e}, "overlooked": {:.1e}, "complete": {}}}"#,
                    seconds[RUNS / 2],
                    certificate.overlooked,
                    certificate.complete,
                );
            }
        }
    }
}
