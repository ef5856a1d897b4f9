//! The gated activation of Llama's feed-forward block.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join};

const NAME: &str = "swiglu";

/// `silu(gate) * up` (Shazeer 2020, arXiv:2002.05202), where `silu(x) = x / (1 + exp(-x))`.
///
/// Both tensors have one shape and dtype. For 16-bit types `silu` is computed in f32 and rounded before the product, as
/// in PyTorch. Of the intermediate values none is kept for the backward pass.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "gate", gate)?;
    ensure_dtype(NAME, "second operand", up, gate.dtype())?;
    ensure_shape(NAME, "second operand", up, gate.dims())?;
    let saved = SwiGlu { gate: gate.detach().contiguous()?, up: up.detach().contiguous()? };
    let value = if gate.device().is_cpu() { cpu::forward(&saved)? } else { Value::Tensor(composed::forward(&saved)?) };
    join([Some(gate), Some(up)], value, saved)
}

struct SwiGlu {
    gate: Tensor,
    up: Tensor,
}

impl Backward<2> for SwiGlu {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        if grad.device().is_cpu() { cpu::backward(self, grad, wanted) } else { composed::backward(self, grad, wanted) }
    }
}
