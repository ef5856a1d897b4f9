//! The Gaussian error linear unit.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::ensure_float;
use crate::graph::{Backward, Value, join};

const NAME: &str = "gelu";

/// `x * P(X < x)` for a standard normal `X`, which is `x / 2 * (1 + erf(x / sqrt(2)))` (Hendrycks & Gimpel 2016, arXiv:1606.08415):
/// PyTorch's default. [`gelu_new`](crate::gelu_new) is its approximation by tanh.
///
/// 16-bit types are computed in f32 and rounded once.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    let saved = Gelu { x: x.detach().contiguous()? };
    let value = if x.device().is_cpu() { cpu::forward(&saved)? } else { Value::Tensor(composed::forward(&saved)?) };
    join([Some(x)], value, saved)
}

struct Gelu {
    x: Tensor,
}

impl Backward<1> for Gelu {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = if grad.device().is_cpu() { cpu::backward(self, grad)? } else { composed::backward(self, grad)? };
        Ok([Some(dx)])
    }
}
