//! Layer normalisation.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape, last_dim};
use crate::graph::{Backward, Value, join};

const NAME: &str = "layer-norm";

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension (Ba et al. 2016, arXiv:1607.06450).
///
/// `x` is `(.., width)`, `weight` and `bias` are `(width)` of the same dtype; the variance is the biased one. 16-bit
/// types are computed in f32 and rounded once, as PyTorch does. The gradient reaches `x` and, where tracked, `weight`
/// and `bias`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let width = last_dim(NAME, "input", x)?;
    ensure_float(NAME, "input", x)?;
    for (operand, tensor) in [("weight", Some(weight)), ("bias", bias)] {
        if let Some(tensor) = tensor {
            ensure_dtype(NAME, operand, tensor, x.dtype())?;
            ensure_shape(NAME, operand, tensor, &[width])?;
        }
    }

    let bias_value = bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let saved = LayerNorm { x: x.detach().contiguous()?, weight: weight.detach().contiguous()?, eps };
    let value = if x.device().is_cpu() {
        cpu::forward(&saved, bias_value.as_ref())?
    } else {
        Value::Tensor(composed::forward(&saved, bias_value.as_ref())?)
    };
    join([Some(x), Some(weight), bias], value, saved)
}

struct LayerNorm {
    x: Tensor,
    weight: Tensor,
    eps: f64,
}

impl Backward<3> for LayerNorm {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        if grad.device().is_cpu() { cpu::backward(self, grad, wanted) } else { composed::backward(self, grad, wanted) }
    }
}
