//! The activation written in candle's own operations: the specification, and the path of devices without a kernel.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use candle_core::{Result, Tensor};

use super::Gelu;
use crate::checks::acc_dtype;

/// The input, and `P(X < x) = (1 + erf(x / sqrt(2))) / 2`, in the dtype of the arithmetic.
fn input_and_probability(op: &Gelu) -> Result<(Tensor, Tensor)> {
    let x = op.x.to_dtype(acc_dtype(op.x.dtype()))?;
    let probability = (&x * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
    Ok((x, probability))
}

pub(super) fn forward(op: &Gelu) -> Result<Tensor> {
    let (x, probability) = input_and_probability(op)?;
    (x * probability)?.to_dtype(op.x.dtype())
}

pub(super) fn backward(op: &Gelu, grad: &Tensor) -> Result<Tensor> {
    let (x, probability) = input_and_probability(op)?;
    let density = ((x.sqr()? * -0.5)?.exp()? * (FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0))?;
    let slope = (probability + (x * density)?)?;
    (grad.to_dtype(slope.dtype())? * slope)?.to_dtype(grad.dtype())
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{assert_close, assert_same_bits_on_each_arch, assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, width| {
            let op = Gelu { x: sample((3, width), 0, dtype) };
            assert_same_value(cpu::forward(&op), forward(&op), tolerance);
            let grad = sample((3, width), 1, dtype);
            assert_close(&cpu::backward(&op, &grad)?, &backward(&op, &grad)?, tolerance);
            assert_same_bits_on_each_arch(|| Ok(vec![cpu::forward(&op)?.into_tensor(), cpu::backward(&op, &grad)?]));
            Ok(())
        });
    }
}
