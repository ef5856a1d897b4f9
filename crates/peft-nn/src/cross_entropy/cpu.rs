use std::mem::MaybeUninit;

use candle_core::{Result, Tensor, WithDType};
use pulp::{Simd, WithSimd};

use super::targets::Targets;
use super::{NAME, SoftmaxMinusOneHot};
use crate::cpu::simd::{ExpOf, ExpSum, dispatch, write};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, for_each_item, map_rows, read, value};
use crate::graph::Value;

/// The losses and the logarithms of the sums of exponentials.
pub(super) fn forward(logits: &Tensor, targets: &Targets) -> Result<(Value, Tensor)> {
    dispatch_float!(NAME, logits, T => forward_typed::<T>(logits, targets))
}

pub(super) fn backward(op: &SoftmaxMinusOneHot, grad: &Tensor) -> Result<Tensor> {
    dispatch_float!(NAME, op.logits, T => {
        type Acc = <T as Element>::Acc;
        let (_, vocabulary) = op.logits.dims2()?;
        let (logits, log_sum_exp, grad) = (read(&op.logits)?, read(&op.log_sum_exp)?, read(grad)?);
        let kernel = Gradient {
            logits: logits.as_slice::<T>()?,
            log_sum_exp: log_sum_exp.as_slice::<Acc>()?,
            grad: grad.as_slice::<Acc>()?,
            targets: op.targets.as_slice(),
            vocabulary,
        };
        let (dlogits, []) = map_rows(kernel.targets.len(), vocabulary, kernel);
        Ok(value(dlogits, op.logits.shape()).into_tensor())
    })
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
            let log_sum_exp = dispatch(LogSumExp(row));
            *pair = [log_sum_exp - row[target as usize].widen().to_f64(), log_sum_exp].map(T::acc);
        }
    });
    let losses = pairs.iter().map(|pair| pair[0]).collect();
    let log_sum_exp = pairs.iter().map(|pair| pair[1]).collect();
    Ok((value::<T::Acc>(losses, positions), value::<T::Acc>(log_sum_exp, positions).into_tensor()))
}

struct LogSumExp<'a, T>(&'a [T]);

impl<T: Element> WithSimd for LogSumExp<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let mut sum = ExpSum::EMPTY;
        sum.add(simd, 1.0, self.0);
        sum.ln()
    }
}

struct Gradient<'a, T: Element> {
    logits: &'a [T],
    log_sum_exp: &'a [T::Acc],
    grad: &'a [T::Acc],
    targets: &'a [Option<u32>],
    vocabulary: usize,
}

// SAFETY: `write` writes all of `out`, and so does the loop of zeros.
unsafe impl<T: Element> Rows<T, 0> for Gradient<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        _: [&mut [T::Acc]; 0],
        _: &mut Scratch<T>,
    ) {
        let Some(target) = self.targets[index] else {
            for dlogit in out {
                dlogit.write(T::zero());
            }
            return;
        };
        let logits = &self.logits[index * self.vocabulary..][..self.vocabulary];
        let (log_sum_exp, grad) = (self.log_sum_exp[index], self.grad[index]);
        let probability = ExpOf { factor: 1.0, shift: log_sum_exp.to_f64(), multiplier: grad.to_f64() };
        write(simd, probability, [logits], [out]);
        let target = target as usize;
        let probability = (logits[target].widen() - log_sum_exp).to_f64().exp();
        out[target].write(T::narrow(T::acc((probability - 1.0) * grad.to_f64())));
    }
}
