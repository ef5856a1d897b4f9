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
    use crate::testing::{
        assert_same_bits_on_each_arch, assert_same_gradients, assert_same_value, for_each_case, sample,
    };

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, width| {
            let op = LayerNorm { x: sample((2, 3, width), 0, dtype), weight: sample(width, 1, dtype), eps: 1e-5 };
            for bias in [None, Some(&sample(width, 2, dtype))] {
                assert_same_value(cpu::forward(&op, bias), forward(&op, bias), tolerance);
                assert_same_bits_on_each_arch(|| Ok(vec![cpu::forward(&op, bias)?.into_tensor()]));
            }
            let grad = sample((2, 3, width), 3, dtype);
            assert_same_gradients(cpu::backward(&op, &grad, [true; 3]), backward(&op, &grad, [true; 3]), tolerance);
            assert_same_bits_on_each_arch(|| Ok(cpu::backward(&op, &grad, [true; 3])?.into_iter().flatten().collect()));
            Ok(())
        });
    }

    /// Each of the ways to compute some of the gradients gives what all of them together give.
    #[test]
    fn unwanted_gradients_are_left_out() -> Result<()> {
        let dtype = candle_core::DType::F64;
        let op = LayerNorm { x: sample((3, 5), 0, dtype), weight: sample(5, 1, dtype), eps: 1e-5 };
        let grad = sample((3, 5), 2, dtype);
        let all = cpu::backward(&op, &grad, [true; 3])?;
        for wanted in (0..8).map(|i| [i & 1 == 1, i & 2 == 2, i & 4 == 4]) {
            let some = cpu::backward(&op, &grad, wanted)?;
            for (wanted, (some, all)) in wanted.into_iter().zip(some.into_iter().zip(&all)) {
                assert_eq!(some.is_some(), wanted);
                if let (Some(some), Some(all)) = (some, all) {
                    crate::testing::assert_close(&some, all, 0.0);
                }
            }
        }
        Ok(())
    }
}
