#![allow(clippy::unwrap_used)]

mod dags;
mod joining;
mod lifetimes;
mod passes;

use candle_core::{Device, Result, Tensor, Var};

use super::{Gradients, Value, join_all};

fn var(values: &[f64]) -> Var {
    Var::new(values, &Device::Cpu).unwrap()
}

#[track_caller]
fn assert_grad(grads: &candle_core::backprop::GradStore, of: &Tensor, expected: &[f64]) {
    assert_eq!(grads.get(of).unwrap().to_vec1::<f64>().unwrap(), expected);
}

/// The sum of its inputs, the i-th of them `i + 1` times.
fn weighted(inputs: &[&Tensor]) -> Result<Tensor> {
    let mut sum = inputs[0].detach().zeros_like()?;
    for (i, input) in inputs.iter().enumerate() {
        sum = (sum + (input.detach() * (i + 1) as f64)?)?;
    }
    let weights = inputs.iter().enumerate().filter(|(_, input)| input.track_op()).map(|(i, _)| (i + 1) as f64);
    join_all("weighted", inputs, Value::Tensor(sum), Weighted(weights.collect()))
}

struct Weighted(Vec<f64>);

impl Gradients for Weighted {
    fn gradients(&self, _output: &Tensor, grad: &Tensor) -> Result<Vec<Tensor>> {
        self.0.iter().map(|weight| grad * *weight).collect()
    }
}
