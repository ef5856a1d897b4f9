//! The softmax written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, Result, Tensor};

use crate::checks::acc_dtype;

pub(super) fn forward(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(acc_dtype(x.dtype()))?;
    let exp = wide.broadcast_sub(&wide.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.to_dtype(x.dtype())
}

pub(super) fn backward(p: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let dtype = acc_dtype(grad.dtype());
    let (p, g) = (p.to_dtype(dtype)?, grad.to_dtype(dtype)?);
    let dot = (&p * &g)?.sum_keepdim(D::Minus1)?;
    (p * g.broadcast_sub(&dot)?)?.to_dtype(grad.dtype())
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{DTYPES, assert_close, assert_same_bits_on_each_arch, assert_same_value, sample};

    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        for (dtype, tolerance) in DTYPES {
            for width in [5, 75, 1100] {
                let (x, grad) = (sample((2, 2, 6, width), 0, dtype), sample((2, 2, 6, width), 1, dtype));
                let p = forward(&x)?;
                assert_same_value(cpu::forward(&x), Ok(p.clone()), tolerance);
                assert_close(&cpu::backward(&p, &grad)?, &backward(&p, &grad)?, tolerance);
                assert_same_bits_on_each_arch(|| Ok(vec![cpu::forward(&x)?.into_tensor(), cpu::backward(&p, &grad)?]));
            }
        }
        Ok(())
    }
}
