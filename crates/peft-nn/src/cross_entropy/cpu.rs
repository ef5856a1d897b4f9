use std::mem::MaybeUninit;

use candle_core::{Result, Tensor, WithDType};
use pulp::{Simd, WithSimd};

use super::distribution::Distribution;
use super::targets::Targets;
use super::{CrossEntropyOptions, Forward, NAME, SoftmaxMinusOneHot};
use crate::cpu::simd::{ExpOf, dispatch, write};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, for_each_item, map_rows, read, value};

pub(super) fn forward(logits: &Tensor, targets: &Targets, options: CrossEntropyOptions) -> Result<Forward> {
    dispatch_float!(NAME, logits, T => forward_typed::<T>(logits, targets, options))
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
            scale: op.scale,
        };
        let (dlogits, []) = map_rows(kernel.targets.len(), vocabulary, kernel);
        Ok(value(dlogits, op.logits.shape()).into_tensor())
    })
}

fn forward_typed<T: Element>(logits: &Tensor, targets: &Targets, options: CrossEntropyOptions) -> Result<Forward> {
    let (positions, vocabulary) = logits.dims2()?;
    let elements = read(logits)?;
    let elements = elements.as_slice::<T>()?;
    let targets = targets.as_slice();
    // Loss, entropy and log-sum-exp of each position that counts.
    let mut found = vec![[T::acc(0.0); 3]; positions];
    for_each_item(&mut found, vocabulary, |i, found| {
        if let Some(target) = targets[i] {
            let row = &elements[i * vocabulary..][..vocabulary];
            let distribution = dispatch(Read { row, options });
            let log_sum_exp = distribution.log_sum_exp();
            let loss = log_sum_exp - row[target as usize].widen().to_f64() * options.logit_scale;
            let entropy = if options.entropies { distribution.entropy() } else { 0.0 };
            *found = [loss, entropy, log_sum_exp].map(T::acc);
        }
    });
    let column = |i: usize| value::<T::Acc>(found.iter().map(|found| found[i]).collect(), positions);
    let entropies = options.entropies.then(|| column(1).into_tensor());
    Ok(Forward { losses: column(0), entropies, log_sum_exp: column(2).into_tensor() })
}

struct Read<'a, T> {
    row: &'a [T],
    options: CrossEntropyOptions,
}

impl<T: Element> WithSimd for Read<'_, T> {
    type Output = Distribution;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Distribution {
        let mut distribution = Distribution::new(self.options.logit_scale, self.options.entropies);
        distribution.add(simd, self.row);
        distribution
    }
}

struct Gradient<'a, T: Element> {
    logits: &'a [T],
    log_sum_exp: &'a [T::Acc],
    grad: &'a [T::Acc],
    targets: &'a [Option<u32>],
    vocabulary: usize,
    scale: f64,
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
        let log_sum_exp = self.log_sum_exp[index].to_f64();
        let grad = self.grad[index].to_f64() * self.scale;
        let probability = ExpOf { factor: self.scale, shift: log_sum_exp, multiplier: grad };
        write(simd, probability, [logits], [out]);
        let target = target as usize;
        let log_probability = logits[target].widen().to_f64() * self.scale - log_sum_exp;
        out[target].write(T::narrow(T::acc(log_probability.exp_m1() * grad)));
    }
}
