//! The token that a draw takes of what the options leave.

use super::Sampling;
use super::row::{BLOCK, Row, position};
use crate::cpu::gemm::Scratch;

/// Tokens that may be kept, their logits and weights.
type Candidates = Vec<(usize, f32, f64)>;

pub(super) fn token(row: &Row<'_>, sampling: &Sampling, uniform: f64) -> usize {
    let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
    if temperature == 0.0 {
        return row.likeliest();
    }
    let top_k = top_k.filter(|top_k| *top_k < row.logits.len());
    if top_k.is_none() && top_p >= 1.0 && min_p <= 0.0 {
        return row.at(uniform);
    }
    let mut weights = Scratch::new(row.logits.len());
    row.weights(0, &mut weights);
    let mut kept = match top_k {
        Some(top_k) => likeliest(row, &weights, top_k.max(1)),
        None => nucleus_and_more(row, &weights, top_p, min_p),
    };
    if top_p < 1.0 {
        let total = if top_k.is_some() { kept.iter().map(|(.., weight)| weight).sum() } else { row.total };
        kept.sort_unstable_by(|(a, left, _), (b, right, _)| right.total_cmp(left).then(a.cmp(b)));
        let mut before = 0.0;
        let end = kept.iter().position(|(.., weight)| {
            let beyond = before >= top_p * total;
            before += weight;
            beyond
        });
        // The likeliest is always kept.
        kept.truncate(end.unwrap_or(kept.len()).max(1));
        kept.sort_unstable_by_key(|(id, ..)| *id);
    }
    kept.retain(|(.., weight)| *weight >= min_p);
    let sum: f64 = kept.iter().map(|(.., weight)| weight).sum();
    let at = position(kept.iter().map(|(.., weight)| *weight), uniform * sum);
    kept.get(at).map_or_else(|| row.likeliest(), |(id, ..)| *id)
}

/// The tokens with a logit of at least `bound`, by id.
fn from_bound(row: &Row<'_>, weights: &[f32], bound: f32) -> Candidates {
    let mut found = vec![];
    for (block, _) in row.maxima.iter().enumerate().filter(|(_, max)| **max >= bound) {
        let start = block * BLOCK;
        let logits = row.logits[start..].iter().take(BLOCK).enumerate().filter(|(_, logit)| **logit >= bound);
        found.extend(logits.map(|(i, logit)| (start + i, *logit, f64::from(weights[start + i]))));
    }
    found
}

/// The `count` likeliest tokens, at least one and not all, and those as likely as the last of them.
fn likeliest(row: &Row<'_>, weights: &[f32], count: usize) -> Candidates {
    let largest = |logits: &mut [f32]| *logits.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
    // As many blocks as there are to be tokens have one of at least the last of their maxima.
    let bound = if count <= row.maxima.len() { largest(&mut row.maxima.clone()) } else { f32::NEG_INFINITY };
    let mut found = from_bound(row, weights, bound);
    let last = largest(&mut found.iter().map(|(_, logit, _)| *logit).collect::<Vec<_>>());
    found.retain(|(_, logit, _)| *logit >= last);
    found
}

/// All tokens that `top_p` and `min_p` keep, and some that they cut.
fn nucleus_and_more(row: &Row<'_>, weights: &[f32], top_p: f64, min_p: f64) -> Candidates {
    // Beyond the exponent that the smallest weight has there is nothing.
    for halvings in [6, 12, 24, 48] {
        let share = 0.5f64.powi(halvings);
        let found = from_bound(row, weights, row.logit_of_weight(share));
        let enough = top_p < 1.0 && found.iter().map(|(.., weight)| weight).sum::<f64>() >= top_p * row.total;
        if enough || share < min_p {
            return found;
        }
    }
    from_bound(row, weights, f32::NEG_INFINITY)
}
