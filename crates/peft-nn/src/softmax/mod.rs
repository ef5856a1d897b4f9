//! Softmax over the last dimension.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::{ensure_float, last_dim};
use crate::graph::{Backward, Value, join};

const NAME: &str = "softmax-last-dim";

/// The softmax of every row of the last dimension.
///
/// 16-bit types are computed in f32 and rounded once. A row that is `-inf` throughout gives NaN, as in PyTorch.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    last_dim(NAME, "input", x)?;
    ensure_float(NAME, "input", x)?;
    join([Some(x)], forward(&x.detach().contiguous()?)?, Softmax)
}

struct Softmax;

impl Backward<1> for Softmax {
    const NAME: &'static str = NAME;

    fn backward(&self, output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(backward(output, grad)?)])
    }
}

/// `x` is contiguous and untracked.
fn forward(x: &Tensor) -> Result<Value> {
    if x.device().is_cpu() { cpu::forward(x) } else { Ok(Value::Tensor(composed::forward(x)?)) }
}

/// The gradient of the input, `p * (grad - sum(grad * p))`. Both tensors are contiguous and untracked.
fn backward(p: &Tensor, grad: &Tensor) -> Result<Tensor> {
    if grad.device().is_cpu() { cpu::backward(p, grad) } else { composed::backward(p, grad) }
}
