//! Rows of logits, which become rows of gradients where they are.

use candle_core::WithDType;
use num_traits::Zero;
use pulp::{Simd, WithSimd};

use super::pass::Counted;
use crate::cpu::simd::{Elementwise, Lanes, Sum, dispatch, update, update_with};
use crate::cpu::{Element, for_each_item};
use crate::cross_entropy::CrossEntropyOptions;
use crate::cross_entropy::distribution::Distribution;

/// What rows of logits are for: one row for each position.
pub(super) struct Rows<'a, T: Element> {
    pub(super) vocabulary: usize,
    pub(super) counted: &'a [Counted],
    /// Added to every row.
    pub(super) bias: Option<&'a [T]>,
    /// Added to the rows.
    pub(super) change: Option<Change<T>>,
    /// What the gradient of each row is multiplied with: one if there are none.
    pub(super) factors: Option<&'a [T::Acc]>,
    pub(super) options: CrossEntropyOptions,
}

/// What is found at a position.
#[derive(Clone, Copy)]
pub(super) struct AtPosition<T: Element> {
    pub(super) loss: T::Acc,
    /// Zero if it is not asked for.
    pub(super) entropy: T::Acc,
}

/// The logits of a low-rank change of the head, and what they are multiplied with.
pub(super) struct Change<T> {
    pub(super) logits: Vec<T>,
    pub(super) scale: f64,
}

impl<T: Element> Rows<'_, T> {
    /// Reads the rows, which are replaced by the gradients of the losses if those are asked for.
    pub(super) fn read(&self, logits: &mut [T], gradients: bool) -> Vec<AtPosition<T>> {
        let nothing = AtPosition { loss: T::Acc::zero(), entropy: T::Acc::zero() };
        let rows = logits.chunks_exact_mut(self.vocabulary);
        let mut rows = rows.map(|logits| (logits, nothing)).collect::<Vec<_>>();
        for_each_item(&mut rows, self.vocabulary, |i, (logits, found)| {
            let change = self.change.as_ref();
            *found = dispatch(Row {
                logits,
                target: self.counted[i].target as usize,
                bias: self.bias,
                change: change.map(|change| (&change.logits[i * self.vocabulary..][..self.vocabulary], change.scale)),
                factor: gradients.then(|| self.factors.map_or(1.0, |factors| factors[i].to_f64())),
                options: self.options,
            });
        });
        rows.into_iter().map(|(_, found)| found).collect()
    }
}

struct Row<'a, T> {
    logits: &'a mut [T],
    target: usize,
    bias: Option<&'a [T]>,
    change: Option<(&'a [T], f64)>,
    /// Of the gradient, if there shall be one.
    factor: Option<f64>,
    options: CrossEntropyOptions,
}

impl<T: Element> WithSimd for Row<'_, T> {
    type Output = AtPosition<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> AtPosition<T> {
        let Self { logits, target, bias, change, factor, options } = self;
        if let Some(bias) = bias {
            update_with(simd, Sum, logits, bias);
        }
        if let Some((change, scale)) = change {
            update_with(simd, AddScaled(scale), logits, change);
        }
        let scale = options.logit_scale;
        let mut distribution = Distribution::new(scale, options.entropies);
        distribution.add(simd, logits);
        let loss = distribution.log_sum_exp() - logits[target].widen().to_f64() * scale;
        if let Some(factor) = factor {
            let factor = factor * scale;
            update(simd, distribution.probabilities().times(factor), logits);
            logits[target] = T::narrow(T::acc((-loss).exp_m1() * factor));
        }
        let entropy = if options.entropies { distribution.entropy() } else { 0.0 };
        AtPosition { loss: T::acc(loss), entropy: T::acc(entropy) }
    }
}

/// `x + scale * y`
#[derive(Clone, Copy)]
pub(super) struct AddScaled(pub(super) f64);

impl Elementwise<2, 1> for AddScaled {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, y]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [y.mul_add(y.constant(self.0), x)]
    }
}
