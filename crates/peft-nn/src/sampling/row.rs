//! What is known of a distribution after two passes over its logits.

use std::mem::MaybeUninit;

use pulp::{Simd, WithSimd};

use crate::cpu::Element;
use crate::cpu::simd::{CHUNK, Elementwise, Identity, Lanes, dispatch, max, sum, write};

/// Logits that share a maximum.
pub(super) const BLOCK: usize = 64;
/// What the logarithms of probabilities are held above, where they are multiplied with probabilities that are zero there.
const LOWEST: f64 = -1e4;

/// `softmax(logits / temperature)`.
pub(super) struct Row<'a> {
    pub(super) logits: &'a [f32],
    exponent: Exponent,
    /// The largest logit.
    pub(super) top: f32,
    /// The largest of each [`BLOCK`] of logits.
    pub(super) maxima: Vec<f32>,
    /// The sums of the [weights](Row::weights) of each [`CHUNK`].
    chunks: Vec<f64>,
    /// Of all.
    pub(super) total: f64,
    /// The sum of the weights times their logarithms.
    weighted_logs: f64,
}

impl<'a> Row<'a> {
    /// `None` where a logit is NaN, or the largest is infinite.
    pub(super) fn new(logits: &'a [f32], temperature: f64) -> Option<Self> {
        let maxima = dispatch(Maxima(logits));
        let top = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !top.is_finite() {
            return None;
        }
        let exponent = Exponent { top: f64::from(top), inverse: temperature.recip() };
        let sums = dispatch(Sums { logits, exponent });
        let (total, weighted_logs) = sums.iter().fold((0.0, 0.0), |(a, b), [x, y]| (a + x, b + y));
        let chunks = sums.into_iter().map(|[weights, _]| weights).collect();
        // NaN is nowhere but in the sum.
        (total > 0.0).then_some(Self { logits, exponent, top, maxima, chunks, total, weighted_logs })
    }

    /// The exponentials of the logits less the largest, over the temperature: probabilities times [`Row::total`].
    pub(super) fn weights(&self, from: usize, out: &mut [f32]) {
        dispatch(Weights { logits: &self.logits[from..][..out.len()], exponent: self.exponent, out });
    }

    /// What the weight of a logit is the exponential of.
    fn log_weight(&self, id: usize) -> f64 {
        (f64::from(self.logits[id]) - self.exponent.top) * self.exponent.inverse
    }

    /// A logit whose weight is this, or a little less.
    pub(super) fn logit_of_weight(&self, weight: f64) -> f32 {
        ((self.exponent.top + weight.ln() / self.exponent.inverse) as f32).next_down()
    }

    pub(super) fn log_prob(&self, id: usize) -> f64 {
        self.log_weight(id) - self.total.ln()
    }

    pub(super) fn entropy(&self) -> f64 {
        // Rounding may take a little too much away.
        (self.total.ln() - self.weighted_logs / self.total).max(0.0)
    }

    /// The first of the largest logits.
    pub(super) fn likeliest(&self) -> usize {
        let block = self.maxima.iter().position(|max| *max == self.top).unwrap_or(0) * BLOCK;
        block + self.logits[block..].iter().position(|logit| *logit == self.top).unwrap_or(0)
    }

    /// The token that `uniform` of all probability lies in.
    pub(super) fn at(&self, uniform: f64) -> usize {
        let mut rest = uniform * self.total;
        let found = self.chunks.iter().position(|sum| {
            let inside = rest < *sum;
            rest -= if inside { 0.0 } else { *sum };
            inside
        });
        // Rounding may leave a rest behind the last one.
        let chunk = found.or_else(|| self.chunks.iter().rposition(|sum| *sum > 0.0)).unwrap_or(0) * CHUNK;
        let mut weights = [0.0; CHUNK];
        let weights = &mut weights[..CHUNK.min(self.logits.len() - chunk)];
        self.weights(chunk, weights);
        chunk + position(weights.iter().map(|weight| f64::from(*weight)), rest)
    }
}

/// The first position where the sum of the weights so far exceeds `rest`; the last one with a weight if none does.
pub(super) fn position(weights: impl Iterator<Item = f64>, mut rest: f64) -> usize {
    let mut last = 0;
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = i;
        }
        rest -= weight;
        if rest < 0.0 {
            return i;
        }
    }
    last
}

/// `(x - top) / temperature`
#[derive(Clone, Copy)]
struct Exponent {
    top: f64,
    inverse: f64,
}

impl Exponent {
    #[inline(always)]
    fn of<S: Simd, T: Element>(self, x: Lanes<S, T::Acc>) -> Lanes<S, T::Acc> {
        (x - self.top) * self.inverse
    }
}

/// The weight.
impl Elementwise<1, 1> for Exponent {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        [self.of::<S, T>(x).exp()]
    }
}

/// The weight, and its product with its logarithm.
impl Elementwise<1, 2> for Exponent {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 2] {
        let log = self.of::<S, T>(x);
        let weight = log.exp();
        [weight, weight * log.max(log.constant(LOWEST))]
    }
}

struct Maxima<'a>(&'a [f32]);

impl WithSimd for Maxima<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        // Loops: in closures of iterators vector instructions are not inlined.
        let mut maxima = Vec::with_capacity(self.0.len().div_ceil(BLOCK));
        for block in self.0.chunks(BLOCK) {
            maxima.push(max(simd, Identity, block) as f32);
        }
        maxima
    }
}

struct Sums<'a> {
    logits: &'a [f32],
    exponent: Exponent,
}

impl WithSimd for Sums<'_> {
    type Output = Vec<[f64; 2]>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<[f64; 2]> {
        let mut sums = Vec::with_capacity(self.logits.len().div_ceil(CHUNK));
        for chunk in self.logits.chunks(CHUNK) {
            sums.push(sum::<S, f32, 1, 2>(simd, self.exponent, [chunk]));
        }
        sums
    }
}

struct Weights<'a> {
    logits: &'a [f32],
    exponent: Exponent,
    out: &'a mut [f32],
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { logits, exponent, out } = self;
        // SAFETY: an initialised slice may be written as one that is not; `write` writes numbers.
        let out = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) };
        write::<S, f32, f32, 1, 1>(simd, exponent, [logits], [out]);
    }
}
