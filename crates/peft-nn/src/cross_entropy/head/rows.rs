//! Rows of logits, which become rows of gradients where they are.

use candle_core::WithDType;
use num_traits::Zero;
use pulp::{Simd, WithSimd};

use super::pass::Counted;
use crate::cpu::simd::{Elementwise, ExpSum, Lanes, Sum, dispatch, update, update_with};
use crate::cpu::{Element, for_each_item};

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
}

/// The logits of a low-rank change of the head, and what they are multiplied with.
pub(super) struct Change<T> {
    pub(super) logits: Vec<T>,
    pub(super) scale: f64,
}

impl<T: Element> Rows<'_, T> {
    /// The losses of the rows, which are replaced by the gradients of the losses if those are asked for.
    pub(super) fn losses(&self, logits: &mut [T], gradients: bool) -> Vec<T::Acc> {
        let rows = logits.chunks_exact_mut(self.vocabulary);
        let mut rows = rows.map(|logits| (logits, T::Acc::zero())).collect::<Vec<_>>();
        for_each_item(&mut rows, self.vocabulary, |i, (logits, loss)| {
            let change = self.change.as_ref();
            *loss = dispatch(Row {
                logits,
                target: self.counted[i].target as usize,
                bias: self.bias,
                change: change.map(|change| (&change.logits[i * self.vocabulary..][..self.vocabulary], change.scale)),
                factor: gradients.then(|| self.factors.map_or(1.0, |factors| factors[i].to_f64())),
            });
        });
        rows.into_iter().map(|(_, loss)| loss).collect()
    }
}

struct Row<'a, T> {
    logits: &'a mut [T],
    target: usize,
    bias: Option<&'a [T]>,
    change: Option<(&'a [T], f64)>,
    /// Of the gradient, if there shall be one.
    factor: Option<f64>,
}

impl<T: Element> WithSimd for Row<'_, T> {
    type Output = T::Acc;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> T::Acc {
        let Self { logits, target, bias, change, factor } = self;
        if let Some(bias) = bias {
            update_with(simd, Sum, logits, bias);
        }
        if let Some((change, scale)) = change {
            update_with(simd, AddScaled(scale), logits, change);
        }
        let mut total = ExpSum::EMPTY;
        total.add(simd, 1.0, logits);
        let loss = total.ln() - logits[target].widen().to_f64();
        if let Some(factor) = factor {
            let gradient = (-loss).exp() - 1.0;
            update(simd, total.share(1.0).times(factor), logits);
            logits[target] = T::narrow(T::acc(gradient * factor));
        }
        T::acc(loss)
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
