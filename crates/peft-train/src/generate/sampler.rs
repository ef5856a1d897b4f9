//! Choosing a token from logits.

use super::GenerationConfig;
use crate::error::{Error, Result};

/// A token, and what its distribution says of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampled {
    pub(super) id: u32,
    pub(super) log_prob: f32,
    pub(super) entropy: f32,
}

/// Chooses a token. `seen` are the ids that the penalty is for, `draw` is in [0, 1).
pub(super) fn choose(config: &GenerationConfig, logits: &[f32], seen: &[u32], draw: f64) -> Result<Sampled> {
    if let Some(id) = logits.iter().position(|logit| logit.is_nan()) {
        return Err(Error::option("model", format!("its logit of token {id} is NaN")));
    }
    let own_temperature = if config.temperature == 0.0 { 1.0 } else { config.temperature };
    let (log_probs, entropy) = distribution(logits, own_temperature);
    let mut scores: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    if config.repetition_penalty != 1.0 {
        for &id in seen {
            let (score, logit) = (&mut scores[id as usize], f64::from(logits[id as usize]));
            *score = if logit < 0.0 { logit * config.repetition_penalty } else { logit / config.repetition_penalty };
        }
    }
    let id = if config.temperature == 0.0 { likeliest(&scores) } else { drawn(config, &scores, draw) };
    match id.filter(|&id| scores[id] > f64::NEG_INFINITY) {
        Some(id) => Ok(Sampled { id: id as u32, log_prob: log_probs[id] as f32, entropy: entropy as f32 }),
        None => Err(Error::option("model", "it gives no token a probability")),
    }
}

/// The logarithms of all probabilities, and their entropy.
fn distribution(logits: &[f32], temperature: f64) -> (Vec<f64>, f64) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Of infinite logits only the infinite ones count.
    let shifted = |&logit: &f32| if logit == top { 0.0 } else { (f64::from(logit) - f64::from(top)) / temperature };
    let total = logits.iter().map(|logit| shifted(logit).exp()).sum::<f64>().ln();
    let log_probs: Vec<f64> = logits.iter().map(|logit| shifted(logit) - total).collect();
    let entropy = log_probs.iter().filter(|p| p.is_finite()).map(|p| -p * p.exp()).sum();
    (log_probs, entropy)
}

fn drawn(config: &GenerationConfig, scores: &[f64], draw: f64) -> Option<usize> {
    let top = scores[likeliest(scores)?];
    let weight = |score: f64| if score == top { 1.0 } else { ((score - top) / config.temperature).exp() };
    let mut kept: Vec<(usize, f64)> = scores.iter().map(|score| weight(*score)).enumerate().collect();
    kept.sort_by(|(a, left), (b, right)| right.total_cmp(left).then(a.cmp(b)));
    if let Some(top_k) = config.top_k.filter(|top_k| *top_k < kept.len()) {
        let last = kept[top_k - 1].1;
        kept.retain(|(_, weight)| *weight >= last);
    }
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut before = 0.0;
    kept.retain(|(_, weight)| {
        let keep = before < config.top_p * total || config.top_p == 1.0;
        before += weight;
        keep
    });
    kept.retain(|(_, weight)| *weight >= config.min_p);
    kept.sort_by_key(|(id, _)| *id);
    let mut rest = draw * kept.iter().map(|(_, weight)| weight).sum::<f64>();
    let chosen = kept.iter().find(|(_, weight)| {
        rest -= weight;
        rest < 0.0
    });
    // Rounding may leave a rest behind the last one.
    chosen.or_else(|| kept.iter().rfind(|(_, weight)| *weight > 0.0)).map(|(id, _)| *id)
}

/// The first of the largest scores.
fn likeliest(scores: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (id, &score) in scores.iter().enumerate() {
        if best.is_none_or(|(_, largest)| score > largest) {
            best = Some((id, score));
        }
    }
    best.map(|(id, _)| id)
}
