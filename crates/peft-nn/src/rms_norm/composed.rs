//! RMS normalisation written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, Result, Tensor};

use super::RmsNorm;
use crate::checks::acc_dtype;

/// The input and `1 / sqrt(mean(x^2) + eps)` of its rows, in the dtype of the arithmetic.
fn input_and_scale(op: &RmsNorm) -> Result<(Tensor, Tensor)> {
    let x = op.x.to_dtype(acc_dtype(op.x.dtype()))?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + op.eps)?.sqrt()?.recip()?;
    Ok((x, scale))
}

pub(super) fn forward(op: &RmsNorm) -> Result<Tensor> {
    let (x, scale) = input_and_scale(op)?;
    x.broadcast_mul(&scale)?.to_dtype(op.x.dtype())?.broadcast_mul(&op.weight)
}

pub(super) fn backward(op: &RmsNorm, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let (x, scale) = input_and_scale(op)?;
    let normalised = x.broadcast_mul(&scale)?;
    let grad = grad.to_dtype(x.dtype())?;
    let dx = if wanted[0] {
        let h = grad.broadcast_mul(&op.weight.to_dtype(x.dtype())?)?;
        let mean = (&h * &normalised)?.mean_keepdim(D::Minus1)?;
        let dx = (h - normalised.broadcast_mul(&mean)?)?.broadcast_mul(&scale)?;
        Some(dx.to_dtype(op.x.dtype())?)
    } else {
        None
    };
    let dweight = if wanted[1] {
        let width = op.weight.elem_count();
        Some((grad * normalised)?.reshape(((), width))?.sum(0)?.to_dtype(op.weight.dtype())?)
    } else {
        None
    };
    Ok([dx, dweight])
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{
        assert_same_bits_on_each_arch, assert_same_gradients, assert_same_value, for_each_case, sample,
    };

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, width| {
            let op = RmsNorm { x: sample((2, 3, width), 0, dtype), weight: sample(width, 1, dtype), eps: 1e-5 };
            assert_same_value(cpu::forward(&op), forward(&op), tolerance);
            let grad = sample((2, 3, width), 2, dtype);
            assert_same_gradients(cpu::backward(&op, &grad, [true; 2]), backward(&op, &grad, [true; 2]), tolerance);
            assert_same_bits_on_each_arch(|| {
                let gradients = cpu::backward(&op, &grad, [true; 2])?;
                Ok(gradients.into_iter().flatten().chain([cpu::forward(&op)?.into_tensor()]).collect())
            });
            Ok(())
        });
    }
}
