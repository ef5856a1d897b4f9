//! Root mean square normalisation.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape, last_dim};
use crate::graph::{Backward, Value, join};

const NAME: &str = "rms-norm";

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).
///
/// `x` is `(.., width)` and `weight` is `(width)` of the same dtype. For 16-bit types the normalisation runs in f32 and
/// is rounded to the dtype of `x` before the weight is applied, as in transformers' `LlamaRMSNorm`. The gradient
/// reaches `x` and, if it is tracked, `weight`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = last_dim(NAME, "input", x)?;
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "weight", weight, x.dtype())?;
    ensure_shape(NAME, "weight", weight, &[width])?;

    let saved = RmsNorm { x: x.detach().contiguous()?, weight: weight.detach().contiguous()?, eps };
    let value = if x.device().is_cpu() { cpu::forward(&saved)? } else { Value::Tensor(composed::forward(&saved)?) };
    join([Some(x), Some(weight)], value, saved)
}

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    eps: f64,
}

impl Backward<2> for RmsNorm {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        if grad.device().is_cpu() { cpu::backward(self, grad, wanted) } else { composed::backward(self, grad, wanted) }
    }
}
