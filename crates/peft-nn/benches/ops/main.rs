//! Times of the operators, forward alone and with the backward pass, beside the same written in candle's own operations.
//!
//! `cargo bench -p peft-nn [part of a name]`, or with dependencies as the tests have them
//! `cargo bench -p candle-peft -p peft-nn --profile dev --bench ops [part of a name]`. The backward pass is that of a graph, which adds up what
//! arrives at its leaves; both sides of a comparison have it.
#![allow(missing_docs, clippy::unwrap_used)]

mod losses;
mod pointwise;
mod rows;

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};

/// Positions of a batch: four sequences of 256.
const TOKENS: usize = 1024;
/// The width of a small model and that of its feed-forward block.
const WIDTH: usize = 576;
const WIDE: usize = 1536;

/// An operator of its inputs.
type Operator<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Values like those of activations.
fn random(shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Times each of some ways to compute one thing. All inputs get gradients.
fn compare(criterion: &mut Criterion, name: &str, inputs: &[Tensor], ways: &[(&str, Operator<'_>)]) {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let mut group = criterion.benchmark_group(format!("{name}/forward"));
    for (way, f) in ways {
        group.bench_function(*way, |bencher| bencher.iter(|| black_box(f(inputs).unwrap())));
    }
    group.finish();
    let mut group = criterion.benchmark_group(format!("{name}/with backward"));
    for (way, f) in ways {
        group.bench_function(*way, |bencher| {
            bencher.iter(|| black_box(f(&tracked).unwrap().backward().unwrap()));
        });
    }
    group.finish();
}

criterion_group! {
    name = operators;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = pointwise::all, rows::all, losses::all
}
criterion_main!(operators);
