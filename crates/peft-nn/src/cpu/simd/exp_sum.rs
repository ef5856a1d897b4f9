use pulp::Simd;

use super::{CHUNK, Elementwise, Lanes, Times, max, sum};
use crate::cpu::Element;

/// A sum of exponentials, read in one pass: the largest exponent so far is taken out, and the sum is scaled when a larger one comes.
#[derive(Clone, Copy)]
pub(crate) struct ExpSum {
    max: f64,
    /// The sum divided by `exp(max)`.
    scaled: f64,
}

impl ExpSum {
    pub(crate) const EMPTY: Self = Self { max: f64::NEG_INFINITY, scaled: 0.0 };

    /// Adds `exp(factor * x)` of every value.
    #[inline(always)]
    pub(crate) fn add<S: Simd, T: Element>(&mut self, simd: S, factor: f64, values: &[T]) {
        for chunk in values.chunks(CHUNK) {
            let largest = max(simd, Times(factor), chunk);
            if largest > self.max {
                self.scaled *= (self.max - largest).exp();
                self.max = largest;
            }
            // If all are negative infinity so far, their exponentials are zero whatever is taken out.
            let shift = if self.max == f64::NEG_INFINITY { 0.0 } else { self.max };
            let [chunk_sum] = sum(simd, ExpOf { factor, shift, multiplier: 1.0 }, [chunk]);
            self.scaled += chunk_sum;
        }
    }

    /// The share that a value has in the sum: `exp(factor * x) / sum`.
    pub(crate) fn share(self, factor: f64) -> ExpOf {
        ExpOf { factor, shift: self.max, multiplier: self.scaled.recip() }
    }
}

/// `exp(factor * x - shift) * multiplier`
#[derive(Clone, Copy)]
pub(crate) struct ExpOf {
    pub(crate) factor: f64,
    pub(crate) shift: f64,
    pub(crate) multiplier: f64,
}

impl ExpOf {
    /// The same times a factor.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { multiplier: self.multiplier * factor, ..self }
    }
}

impl Elementwise<1, 1> for ExpOf {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        [(x * self.factor - self.shift).exp() * self.multiplier]
    }
}
