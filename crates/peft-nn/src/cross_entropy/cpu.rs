use candle_core::{Result, Tensor};
use num_traits::Float;

use super::targets::Targets;
use super::{NAME, SoftmaxMinusOneHot};
use crate::cpu::{Element, dispatch_float, for_each_item, for_each_row, read, sum, value};
use crate::graph::Value;

/// The losses and the logarithms of the sums of exponentials.
pub(super) fn forward(logits: &Tensor, targets: &Targets) -> Result<(Value, Tensor)> {
    dispatch_float!(NAME, logits, T => forward_typed::<T>(logits, targets))
}

pub(super) fn backward(op: &SoftmaxMinusOneHot, grad: &Tensor) -> Result<Tensor> {
    dispatch_float!(NAME, op.logits, T => backward_typed::<T>(op, grad))
}

fn forward_typed<T: Element>(logits: &Tensor, targets: &Targets) -> Result<(Value, Tensor)> {
    let (positions, vocabulary) = logits.dims2()?;
    let elements = read(logits)?;
    let elements = elements.as_slice::<T>()?;
    let targets = targets.as_slice();
    let zero = T::acc(0.0);
    // One pair of loss and log-sum-exp for each position that counts.
    let mut pairs = vec![[zero; 2]; positions];
    for_each_item(&mut pairs, vocabulary, |i, pair| {
        if let Some(target) = targets[i] {
            let row = &elements[i * vocabulary..][..vocabulary];
            let max = row.iter().map(|x| x.widen()).fold(T::Acc::neg_infinity(), Float::max);
            let log_sum_exp = max + sum(row.iter().map(|x| (x.widen() - max).exp())).ln();
            *pair = [log_sum_exp - row[target as usize].widen(), log_sum_exp];
        }
    });
    let losses = pairs.iter().map(|pair| pair[0]).collect();
    let log_sum_exp = pairs.iter().map(|pair| pair[1]).collect();
    Ok((value::<T::Acc>(losses, positions), value::<T::Acc>(log_sum_exp, positions).into_tensor()))
}

fn backward_typed<T: Element>(op: &SoftmaxMinusOneHot, grad: &Tensor) -> Result<Tensor> {
    let (_, vocabulary) = op.logits.dims2()?;
    let (logits, log_sum_exp, grad) = (read(&op.logits)?, read(&op.log_sum_exp)?, read(grad)?);
    let (logits, log_sum_exp, grad) =
        (logits.as_slice::<T>()?, log_sum_exp.as_slice::<T::Acc>()?, grad.as_slice::<T::Acc>()?);
    let targets = op.targets.as_slice();
    let mut dlogits = vec![T::zero(); logits.len()];
    for_each_row(&mut dlogits, vocabulary, |i, dlogits| {
        let Some(target) = targets[i] else { return };
        let row = &logits[i * vocabulary..][..vocabulary];
        for (dlogit, logit) in dlogits.iter_mut().zip(row) {
            *dlogit = T::narrow((logit.widen() - log_sum_exp[i]).exp() * grad[i]);
        }
        let target = target as usize;
        let probability = (row[target].widen() - log_sum_exp[i]).exp();
        dlogits[target] = T::narrow((probability - T::acc(1.0)) * grad[i]);
    });
    Ok(value(dlogits, op.logits.shape()).into_tensor())
}
