//! Rows of logits, read piece by piece, and what they become where they are.

use candle_core::WithDType;
use pulp::{Simd, WithSimd};

use super::inputs::Counted;
use crate::cpu::simd::{Elementwise, Lanes, dispatch, update, update_with};
use crate::cpu::{Element, for_each_item};
use crate::cross_entropy::CrossEntropyOptions;
use crate::cross_entropy::distribution::Distribution;

/// What is known of a position after some of its logits.
#[derive(Clone, Copy)]
pub(super) struct Position {
    distribution: Distribution,
    target: u32,
    /// The scaled logit of the target, once it was read.
    target_logit: f64,
    /// What sums over exponentials from before the last piece are to be multiplied with: a larger logit may have come.
    pub(super) correction: f64,
}

impl Position {
    pub(super) fn new(counted: Counted, options: CrossEntropyOptions) -> Self {
        let distribution = Distribution::new(options.logit_scale, options.entropies);
        Self { distribution, target: counted.target, target_logit: f64::NAN, correction: 1.0 }
    }

    pub(super) fn target(&self) -> usize {
        self.target as usize
    }

    /// What the logits are multiplied with.
    pub(super) fn scale(&self) -> f64 {
        self.distribution.scale()
    }

    pub(super) fn loss(&self) -> f64 {
        self.distribution.log_sum_exp() - self.target_logit
    }

    pub(super) fn entropy(&self) -> f64 {
        self.distribution.entropy()
    }

    /// What the exponentials are multiplied with to be probabilities.
    pub(super) fn normaliser(&self) -> f64 {
        self.distribution.normaliser()
    }

    /// The probability of the target minus one: the gradient at its logit, but for the scale.
    pub(super) fn target_gradient(&self) -> f64 {
        (-self.loss()).exp_m1()
    }
}

/// What logits become.
#[derive(Clone, Copy)]
pub(super) enum Become<'a, A> {
    /// They are left as they are.
    Read,
    /// Their exponentials as the distribution adds them up, zero at the target.
    Exponentials,
    /// The gradients of the losses, times a factor for each row if there are any. Only of whole rows.
    Gradients(Option<&'a [A]>),
}

/// Reads the logits of each position from entry `first` of the vocabulary on.
pub(super) fn read<T: Element>(
    positions: &mut [Position],
    logits: &mut [T],
    first: usize,
    become_: Become<'_, T::Acc>,
) {
    let width = logits.len() / positions.len().max(1);
    let mut rows: Vec<_> = positions.iter_mut().zip(logits.chunks_exact_mut(width.max(1))).collect();
    for_each_item(&mut rows, width, |i, (position, logits)| {
        dispatch(Piece { position, logits, first, row: i, become_ })
    });
}

struct Piece<'a, T: Element> {
    position: &'a mut Position,
    logits: &'a mut [T],
    first: usize,
    row: usize,
    become_: Become<'a, T::Acc>,
}

impl<T: Element> WithSimd for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { position, logits, first, row, become_ } = self;
        let before = position.distribution;
        position.distribution.add(simd, logits);
        position.correction = before.correction_to(&position.distribution);
        let scale = position.distribution.scale();
        let target = position.target().checked_sub(first).filter(|target| *target < logits.len());
        if let Some(target) = target {
            position.target_logit = logits[target].widen().to_f64() * scale;
        }
        let (formula, at_target) = match become_ {
            Become::Read => return,
            Become::Exponentials => (position.distribution.exp(), 0.0),
            Become::Gradients(factors) => {
                let factor = scale * factors.map_or(1.0, |factors| factors[row].to_f64());
                (position.distribution.probabilities().times(factor), position.target_gradient() * factor)
            }
        };
        update(simd, formula, logits);
        if let Some(target) = target {
            logits[target] = T::narrow(T::acc(at_target));
        }
    }
}

/// `x * by + times * y`: of rows that lie as long as each other.
#[derive(Clone, Copy)]
pub(super) struct Blend {
    pub(super) by: f64,
    pub(super) times: f64,
}

impl Elementwise<2, 1> for Blend {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, y]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [y.mul_add(y.constant(self.times), x * self.by)]
    }
}

impl Blend {
    pub(super) fn rows<A: Element>(self, row: &mut [A], other: &[A]) {
        dispatch(BlendRow { blend: self, row, other });
    }
}

struct BlendRow<'a, A> {
    blend: Blend,
    row: &'a mut [A],
    other: &'a [A],
}

impl<A: Element> WithSimd for BlendRow<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        update_with(simd, self.blend, self.row, self.other);
    }
}
