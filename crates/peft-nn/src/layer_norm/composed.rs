//! Layer normalisation written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, Result, Tensor};

use super::LayerNorm;
use crate::checks::acc_dtype;

/// The normalised rows and `1 / sqrt(variance + eps)`, in the dtype of the arithmetic.
fn normalised_and_scale(op: &LayerNorm) -> Result<(Tensor, Tensor)> {
    let x = op.x.to_dtype(acc_dtype(op.x.dtype()))?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + op.eps)?.sqrt()?.recip()?;
    Ok((centred.broadcast_mul(&scale)?, scale))
}

pub(super) fn forward(op: &LayerNorm, bias: Option<&Tensor>) -> Result<Tensor> {
    let (normalised, _) = normalised_and_scale(op)?;
    let dtype = normalised.dtype();
    let y = normalised.broadcast_mul(&op.weight.to_dtype(dtype)?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(dtype)?)?,
        None => y,
    };
    y.to_dtype(op.x.dtype())
}

pub(super) fn backward(op: &LayerNorm, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let (normalised, scale) = normalised_and_scale(op)?;
    let grad = grad.to_dtype(normalised.dtype())?;
    let width = op.weight.elem_count();
    let over_rows = |t: &Tensor| t.reshape(((), width))?.sum(0)?.to_dtype(op.weight.dtype());
    let dx = if wanted[0] {
        let h = grad.broadcast_mul(&op.weight.to_dtype(grad.dtype())?)?;
        let mean_h = h.mean_keepdim(D::Minus1)?;
        let mean_hn = (&h * &normalised)?.mean_keepdim(D::Minus1)?;
        let dx = (h.broadcast_sub(&mean_h)? - normalised.broadcast_mul(&mean_hn)?)?.broadcast_mul(&scale)?;
        Some(dx.to_dtype(op.x.dtype())?)
    } else {
        None
    };
    let dweight = if wanted[1] { Some(over_rows(&(&grad * &normalised)?)?) } else { None };
    let dbias = if wanted[2] { Some(over_rows(&grad)?) } else { None };
    Ok([dx, dweight, dbias])
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{DTYPES, assert_same_gradients, assert_same_value, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for (dtype, tolerance) in DTYPES {
            let op = LayerNorm { x: sample((2, 3, 5), 0, dtype), weight: sample(5, 1, dtype), eps: 1e-5 };
            for bias in [None, Some(&sample(5, 2, dtype))] {
                assert_same_value(cpu::forward(&op, bias), forward(&op, bias), tolerance);
            }
            let grad = sample((2, 3, 5), 3, dtype);
            assert_same_gradients(cpu::backward(&op, &grad, [true; 3]), backward(&op, &grad, [true; 3]), tolerance);
        }
    }
}
