//! The gated activation written in candle's own operations: the specification, and the path of devices without a
//! kernel.

use candle_core::{Result, Tensor};

use super::SwiGlu;
use crate::checks::acc_dtype;

/// The gate and its sigmoid, in the dtype of the arithmetic.
fn gate_and_sigmoid(op: &SwiGlu) -> Result<(Tensor, Tensor)> {
    let gate = op.gate.to_dtype(acc_dtype(op.gate.dtype()))?;
    let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
    Ok((gate, sigmoid))
}

pub(super) fn forward(op: &SwiGlu) -> Result<Tensor> {
    let (gate, sigmoid) = gate_and_sigmoid(op)?;
    (gate * sigmoid)?.to_dtype(op.up.dtype())? * &op.up
}

pub(super) fn backward(op: &SwiGlu, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let (gate, sigmoid) = gate_and_sigmoid(op)?;
    let grad = grad.to_dtype(gate.dtype())?;
    let dtype = op.gate.dtype();
    let dgate = if wanted[0] {
        let slope = (&sigmoid * (((1.0 - &sigmoid)? * &gate)? + 1.0)?)?;
        Some(((&grad * op.up.to_dtype(gate.dtype())?)? * slope)?.to_dtype(dtype)?)
    } else {
        None
    };
    let dup = if wanted[1] { Some(((grad * gate)? * sigmoid)?.to_dtype(dtype)?) } else { None };
    Ok([dgate, dup])
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{DTYPES, assert_same_gradients, assert_same_value, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for (dtype, tolerance) in DTYPES {
            let op = SwiGlu { gate: sample((3, 5), 0, dtype), up: sample((3, 5), 1, dtype) };
            assert_same_value(cpu::forward(&op), forward(&op), tolerance);
            let grad = sample((3, 5), 2, dtype);
            assert_same_gradients(cpu::backward(&op, &grad, [true; 2]), backward(&op, &grad, [true; 2]), tolerance);
        }
    }
}
