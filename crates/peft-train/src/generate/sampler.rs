//! Choosing a token from logits.

use super::GenerationConfig;
use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A rule for choosing tokens, with its random numbers.
pub(super) struct Sampler {
    temperature: f64,
    top_p: f64,
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(super) fn new(config: &GenerationConfig) -> Result<Self> {
        let GenerationConfig { temperature, top_p, seed, .. } = *config;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::option("temperature", format!("{temperature} is not a number of at least 0")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::option("top_p", format!("{top_p} is not in (0, 1]")));
        }
        Ok(Self { temperature, top_p, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The next token. Every call takes one random number, whatever the rule.
    pub(super) fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        // 53 bits: every double in [0, 1) that is a multiple of 2^-53.
        let draw = (self.rng.next_u64() >> 11) as f64 * 2f64.powi(-53);
        if let Some(id) = logits.iter().position(|logit| logit.is_nan()) {
            return Err(Error::option("model", format!("its logit of token {id} is NaN")));
        }
        let id = if self.temperature == 0.0 { likeliest(logits) } else { self.draw(logits, draw) };
        match id {
            Some(id) => Ok(id as u32),
            None => Err(Error::option("model", "it gives no token a probability")),
        }
    }

    fn draw(&self, logits: &[f32], draw: f64) -> Option<usize> {
        let top = f64::from(logits[likeliest(logits)?]);
        let weight = |logit: f32| match f64::from(logit) {
            // Of infinite logits only the infinite ones count.
            logit if logit == top => 1.0,
            logit => ((logit - top) / self.temperature).exp(),
        };
        let mut weights: Vec<(usize, f64)> = logits.iter().map(|logit| weight(*logit)).enumerate().collect();
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut kept = total;
        if self.top_p < 1.0 {
            weights.sort_by(|(a, left), (b, right)| right.total_cmp(left).then(a.cmp(b)));
            kept = 0.0;
            let enough = weights.iter().position(|(_, weight)| {
                kept += weight;
                kept >= self.top_p * total
            });
            weights.truncate(enough.map_or(weights.len(), |last| last + 1));
        }
        let mut rest = draw * kept;
        let chosen = weights.iter().find(|(_, weight)| {
            rest -= weight;
            rest < 0.0
        });
        // Rounding may leave a rest behind the last one.
        chosen.or_else(|| weights.iter().rfind(|(_, weight)| *weight > 0.0)).map(|(id, _)| *id)
    }
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id)
}
