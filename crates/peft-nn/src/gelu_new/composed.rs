//! The activation written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{Result, Tensor};

use super::{CUBIC, GeluNew, inner_scale};
use crate::checks::acc_dtype;

/// The input, and `tanh(sqrt(2 / pi) * (x + 0.044715 x^3))`, in the dtype of the arithmetic.
fn input_and_tanh(op: &GeluNew) -> Result<(Tensor, Tensor)> {
    let x = op.x.to_dtype(acc_dtype(op.x.dtype()))?;
    let tanh = (&x * (x.sqr()?.affine(CUBIC, 1.0)? * inner_scale())?)?.tanh()?;
    Ok((x, tanh))
}

pub(super) fn forward(op: &GeluNew) -> Result<Tensor> {
    let (x, tanh) = input_and_tanh(op)?;
    ((x * 0.5)? * (tanh + 1.0)?)?.to_dtype(op.x.dtype())
}

pub(super) fn backward(op: &GeluNew, grad: &Tensor) -> Result<Tensor> {
    let (x, tanh) = input_and_tanh(op)?;
    let inner_slope = (x.sqr()?.affine(3.0 * CUBIC, 1.0)? * inner_scale())?;
    let slope = ((&tanh + 1.0)? + (x * (1.0 - tanh.sqr()?)? * inner_slope)?)?;
    ((grad.to_dtype(slope.dtype())? * slope)? * 0.5)?.to_dtype(grad.dtype())
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{assert_close, assert_same_bits_on_each_arch, assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, width| {
            let op = GeluNew { x: sample((3, width), 0, dtype) };
            assert_same_value(cpu::forward(&op), forward(&op), tolerance);
            let grad = sample((3, width), 1, dtype);
            assert_close(&cpu::backward(&op, &grad)?, &backward(&op, &grad)?, tolerance);
            assert_same_bits_on_each_arch(|| Ok(vec![cpu::forward(&op)?.into_tensor(), cpu::backward(&op, &grad)?]));
            Ok(())
        });
    }
}
