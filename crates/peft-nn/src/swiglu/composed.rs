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
    use crate::testing::{
        assert_close, assert_same_bits_on_each_arch, assert_same_gradients, assert_same_value, for_each_case, sample,
    };

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, width| {
            let op = SwiGlu { gate: sample((3, width), 0, dtype), up: sample((3, width), 1, dtype) };
            assert_same_value(cpu::forward(&op), forward(&op), tolerance);
            let grad = sample((3, width), 2, dtype);
            let both = cpu::backward(&op, &grad, [true; 2]);
            assert_same_gradients(both, backward(&op, &grad, [true; 2]), tolerance);
            assert_same_bits_on_each_arch(|| {
                let gradients = cpu::backward(&op, &grad, [true; 2])?;
                Ok(gradients.into_iter().flatten().chain([cpu::forward(&op)?.into_tensor()]).collect())
            });
            Ok(())
        });
    }

    #[test]
    fn unwanted_gradients_are_left_out() -> Result<()> {
        let sample = |seed| sample((3, 5), seed, candle_core::DType::F64);
        let (op, grad) = (SwiGlu { gate: sample(0), up: sample(1) }, sample(2));
        let [Some(dgate), Some(dup)] = cpu::backward(&op, &grad, [true; 2])? else { panic!("both are wanted") };
        let [Some(alone), None] = cpu::backward(&op, &grad, [true, false])? else { panic!("the first is wanted") };
        assert_close(&alone, &dgate, 0.0);
        let [None, Some(alone)] = cpu::backward(&op, &grad, [false, true])? else { panic!("the second is wanted") };
        assert_close(&alone, &dup, 0.0);
        Ok(())
    }
}
