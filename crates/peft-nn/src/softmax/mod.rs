//! Softmax over the last dimension.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::attention::Visibility;
use crate::checks::{ensure_float, last_dim};
use crate::graph::{Backward, Value, join};

const NAME: &str = "softmax-last-dim";

/// The softmax of every row of the last dimension.
///
/// 16-bit types are computed in f32 and rounded once. A row that is `-inf` throughout gives NaN, as in PyTorch.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    last_dim(NAME, "input", x)?;
    ensure_float(NAME, "input", x)?;
    join([Some(x)], probabilities(&x.detach().contiguous()?, 1.0, None)?, Softmax)
}

struct Softmax;

impl Backward<1> for Softmax {
    const NAME: &'static str = NAME;

    fn backward(&self, output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(scores_gradient(output, grad, 1.0)?)])
    }
}

/// `softmax(scale * scores)` over the keys that each row may see: the others get zero, and so does every key of a row
/// that sees none. `scores` is contiguous and untracked.
pub(crate) fn probabilities(scores: &Tensor, scale: f64, visibility: Option<&Visibility>) -> Result<Value> {
    if scores.device().is_cpu() {
        cpu::probabilities(scores, scale, visibility)
    } else {
        Ok(Value::Tensor(composed::probabilities(scores, scale, visibility)?))
    }
}

/// The gradient of the scores: `scale * p * (grad - sum(grad * p))`. Both tensors are contiguous and untracked.
pub(crate) fn scores_gradient(probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<Tensor> {
    if grad.device().is_cpu() {
        cpu::scores_gradient(probabilities, grad, scale)
    } else {
        composed::scores_gradient(probabilities, grad, scale)
    }
}
