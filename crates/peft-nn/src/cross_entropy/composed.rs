//! The loss written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, Result, Tensor};

use super::targets::Targets;
use super::{CrossEntropyOptions, Forward, SoftmaxMinusOneHot};
use crate::checks::acc_dtype;
use crate::graph::Value;

pub(super) fn forward(logits: &Tensor, targets: &Targets, options: CrossEntropyOptions) -> Result<Forward> {
    let logits = (logits.to_dtype(acc_dtype(logits.dtype()))? * options.logit_scale)?;
    let (labels, counts) = targets.columns(logits.dtype(), logits.device())?;
    // Selected and not multiplied: an ignored position may hold anything, infinities too.
    let counted =
        |column: Tensor| counts.ne(&counts.zeros_like()?)?.where_cond(&column, &column.zeros_like()?)?.squeeze(1);
    let log_sum_exp = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
    let entropies = if options.entropies {
        let logs = logits.broadcast_sub(&log_sum_exp)?;
        // Where nothing of a probability is left, zero times infinity would be NaN.
        let finite = logs.maximum(&(logs.ones_like()? * -1e4)?)?;
        Some(counted((logs.exp()? * finite)?.sum_keepdim(1)?.neg()?)?)
    } else {
        None
    };
    let losses = Value::Tensor(counted((&log_sum_exp - logits.gather(&labels, 1)?)?)?);
    Ok(Forward { losses, entropies, log_sum_exp: log_sum_exp.squeeze(1)? })
}

pub(super) fn backward(op: &SoftmaxMinusOneHot, grad: &Tensor) -> Result<Tensor> {
    let logits = (op.logits.to_dtype(grad.dtype())? * op.scale)?;
    let (labels, counts) = op.targets.columns(grad.dtype(), grad.device())?;
    let softmax = logits.broadcast_sub(&op.log_sum_exp.unsqueeze(1)?)?.exp()?;
    let difference = softmax.scatter_add(&labels, &counts.neg()?, 1)?;
    let counts = counts.broadcast_as(logits.shape())?;
    let dlogits = difference.broadcast_mul(&(grad.unsqueeze(1)? * op.scale)?)?;
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
            for options in
                [CrossEntropyOptions::default(), CrossEntropyOptions::default().with_logit_scale(0.7).with_entropies()]
            {
                let composed = forward(&logits, &targets()?, options)?;
                let kernel = cpu::forward(&logits, &targets()?, options)?;
                let losses = composed.losses.into_tensor();
                assert_close(&kernel.losses.into_tensor(), &losses, tolerance);
                assert_eq!(kernel.entropies.is_some(), options.entropies);
                if let (Some(kernel), Some(composed)) = (&kernel.entropies, &composed.entropies) {
                    assert_close(kernel, composed, tolerance);
                }
                let grad = sample(4, 1, losses.dtype());
                let op = SoftmaxMinusOneHot {
                    logits: logits.clone(),
                    log_sum_exp: composed.log_sum_exp,
                    targets: targets()?,
                    scale: options.logit_scale,
                };
                assert_close(&cpu::backward(&op, &grad)?, &backward(&op, &grad)?, tolerance);
                assert_same_bits_on_each_arch(|| {
                    let forward = cpu::forward(&op.logits, &op.targets, options)?;
                    let results = [forward.losses.into_tensor(), cpu::backward(&op, &grad)?];
                    Ok(results.into_iter().chain(forward.entropies).collect())
                });
            }
            Ok(())
        });
    }
}
