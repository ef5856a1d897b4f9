//! The loss written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, Result, Tensor};

use super::SoftmaxMinusOneHot;
use super::targets::Targets;
use crate::checks::acc_dtype;

/// The losses and the logarithms of the sums of exponentials.
pub(super) fn forward(logits: &Tensor, targets: &Targets) -> Result<(Tensor, Tensor)> {
    let logits = logits.to_dtype(acc_dtype(logits.dtype()))?;
    let (labels, counts) = targets.columns(logits.dtype(), logits.device())?;
    let log_sum_exp = logits.log_sum_exp(D::Minus1)?;
    let losses = (log_sum_exp.unsqueeze(1)? - logits.gather(&labels, 1)?)?;
    // Selected and not multiplied: an ignored position may hold anything, infinities too.
    let losses = counts.ne(&counts.zeros_like()?)?.where_cond(&losses, &losses.zeros_like()?)?;
    Ok((losses.squeeze(1)?, log_sum_exp))
}

pub(super) fn backward(op: &SoftmaxMinusOneHot, grad: &Tensor) -> Result<Tensor> {
    let logits = op.logits.to_dtype(grad.dtype())?;
    let (labels, counts) = op.targets.columns(grad.dtype(), grad.device())?;
    let softmax = logits.broadcast_sub(&op.log_sum_exp.unsqueeze(1)?)?.exp()?;
    let difference = softmax.scatter_add(&labels, &counts.neg()?, 1)?;
    let counts = counts.broadcast_as(logits.shape())?;
    let dlogits = difference.broadcast_mul(&grad.unsqueeze(1)?)?;
    counts.ne(&counts.zeros_like()?)?.where_cond(&dlogits, &dlogits.zeros_like()?)?.to_dtype(op.logits.dtype())
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use candle_core::Device;

    use crate::testing::{assert_close, assert_same_bits_on_each_arch, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, vocabulary| {
            let logits = sample((4, vocabulary), 0, dtype);
            let labels = Tensor::new(&[4i64, -100, 0, 2], &Device::Cpu)?;
            let targets = || Targets::new(&labels, vocabulary, -100);
            let (losses, log_sum_exp) = forward(&logits, &targets()?)?;
            let kernel = cpu::forward(&logits, &targets()?)?.0.into_tensor();
            assert_close(&kernel, &losses, tolerance);
            let grad = sample(4, 1, losses.dtype());
            let op = SoftmaxMinusOneHot { logits, log_sum_exp, targets: targets()? };
            assert_close(&cpu::backward(&op, &grad)?, &backward(&op, &grad)?, tolerance);
            assert_same_bits_on_each_arch(|| {
                let losses = cpu::forward(&op.logits, &op.targets)?.0.into_tensor();
                Ok(vec![losses, cpu::backward(&op, &grad)?])
            });
            Ok(())
        });
    }
}
