use pulp::Simd;

use crate::cpu::Element;
use crate::cpu::simd::{CHUNK, Elementwise, ExpOf, Lanes, Times, max, sum};

/// The distribution that logits times a scale give, as far as they were read: in one pass, some at a time. The largest exponent so far is
/// taken out, and the sums are changed when a larger one comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Distribution {
    /// What the logits are multiplied with.
    scale: f64,
    /// Whether there shall be an entropy.
    spreads: bool,
    /// The largest exponent.
    max: f64,
    /// Of `exp(y - max)` for each exponent y.
    sum: f64,
    /// Of `exp(y - max) * (max - y)`, of which no term is negative.
    spread: f64,
}

impl Distribution {
    pub(super) fn new(scale: f64, entropy: bool) -> Self {
        Self { scale, spreads: entropy, max: f64::NEG_INFINITY, sum: 0.0, spread: 0.0 }
    }

    /// Reads the next logits.
    #[inline(always)]
    pub(super) fn add<S: Simd, T: Element>(&mut self, simd: S, logits: &[T]) {
        for chunk in logits.chunks(CHUNK) {
            self.raise(max(simd, Times(self.scale), chunk));
            if self.spreads {
                let [sum, spread] = sum(simd, Spread { factor: self.scale, shift: self.shift() }, [chunk]);
                self.sum += sum;
                self.spread += spread;
            } else {
                let [sum] = sum(simd, self.exp(), [chunk]);
                self.sum += sum;
            }
        }
    }

    fn raise(&mut self, largest: f64) {
        if largest > self.max {
            // Before the first of them nothing is there to change, and the difference is infinite.
            if self.sum > 0.0 {
                let factor = (self.max - largest).exp();
                self.spread = (self.spread + self.sum * (largest - self.max)) * factor;
                self.sum *= factor;
            }
            self.max = largest;
        }
    }

    /// If all are negative infinity so far, their exponentials are zero whatever is taken out.
    fn shift(&self) -> f64 {
        if self.max == f64::NEG_INFINITY { 0.0 } else { self.max }
    }

    /// The logarithm of the sum of exponentials.
    pub(super) fn log_sum_exp(&self) -> f64 {
        self.max + self.sum.ln()
    }

    /// In nats.
    pub(super) fn entropy(&self) -> f64 {
        // Neither term is negative, so nothing is lost where the distribution is sharp.
        self.sum.ln() + self.spread / self.sum
    }

    pub(super) fn scale(&self) -> f64 {
        self.scale
    }

    /// What sums over exponentials as they were added up here are multiplied with after more logits were read.
    pub(super) fn correction_to(&self, later: &Self) -> f64 {
        if self.sum > 0.0 { (self.max - later.max).exp() } else { 1.0 }
    }

    /// What the exponentials are multiplied with to be probabilities.
    pub(super) fn normaliser(&self) -> f64 {
        self.sum.recip()
    }

    /// The exponentials as they are added up.
    pub(super) fn exp(&self) -> ExpOf {
        ExpOf { factor: self.scale, shift: self.shift(), multiplier: 1.0 }
    }

    /// The probabilities.
    pub(super) fn probabilities(&self) -> ExpOf {
        self.exp().times(self.normaliser())
    }
}

/// `exp(y)` and `exp(y) * -y` of `y = factor * x - shift`.
#[derive(Clone, Copy)]
struct Spread {
    factor: f64,
    shift: f64,
}

/// So far below the largest exponent nothing is left in f64 either. Negative infinity times zero would be NaN.
const NOTHING: f64 = -1e4;

impl Elementwise<1, 2> for Spread {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 2] {
        let y = x * self.factor - self.shift;
        let power = y.exp();
        [power, power * -y.max(y.constant(NOTHING))]
    }
}
