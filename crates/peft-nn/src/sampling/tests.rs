//! The kernel against what the options say, token by token in f64.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::cpu::simd::{with_each_arch, without_vectors};

/// Irregular logits, a few of them equal.
fn logits(len: usize, seed: usize, spread: f64) -> Vec<f32> {
    let value = |i: usize| ((i * i + 31 * i) % 99_991 + 7 * seed + 1) as f64 * 0.61;
    (0..len).map(|i| (value(i).sin() * value(i).cos() * spread) as f32).map(|x| (x * 1024.0).round() / 1024.0).collect()
}

fn tensor(rows: &[Vec<f32>]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

/// Log-probabilities of all tokens and their entropy.
fn distribution(logits: &[f64], temperature: f64) -> (Vec<f64>, f64) {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| ((x - top) / temperature).exp()).sum();
    let log_probs: Vec<f64> = logits.iter().map(|x| (x - top) / temperature - total.ln()).collect();
    let entropy = log_probs.iter().filter(|p| p.is_finite()).map(|p| -p * p.exp()).sum();
    (log_probs, entropy)
}

fn penalised(logits: &[f64], sampling: &Sampling, seen: &[u32]) -> Vec<f64> {
    let mut scores = logits.to_vec();
    for &id in seen {
        let (score, logit) = (&mut scores[id as usize], logits[id as usize]);
        *score = if logit < 0.0 { logit * sampling.repetition_penalty } else { logit / sampling.repetition_penalty };
    }
    // The kernel's scores are f32.
    scores.into_iter().map(|x| f64::from(x as f32)).collect()
}

/// The tokens that are left, by id, with their probabilities; those that a rounding error could keep or cut are in `unsure`.
fn kept(scores: &[f64], sampling: &Sampling) -> (Vec<(usize, f64)>, Vec<usize>) {
    const SURE: f64 = 1e-6;
    let (log_probs, _) = distribution(scores, sampling.temperature);
    let mut tokens: Vec<(usize, f64)> = log_probs.iter().map(|p| p.exp()).enumerate().collect();
    let mut unsure = vec![];
    tokens.sort_by(|(a, _), (b, _)| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    if let Some(top_k) = sampling.top_k.filter(|k| *k < tokens.len()) {
        let last = scores[tokens[top_k - 1].0];
        tokens.retain(|(id, _)| scores[*id] >= last);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = tokens.iter().map(|(_, p)| p).sum();
        let mut before = 0.0;
        let mut keep = vec![];
        for &(id, p) in &tokens {
            if (before / total - sampling.top_p).abs() < SURE {
                unsure.push(id);
            }
            if before == 0.0 || before < sampling.top_p * total {
                keep.push((id, p));
            }
            before += p;
        }
        tokens = keep;
    }
    let top = tokens[0].1;
    unsure.extend(tokens.iter().filter(|(_, p)| (p / top - sampling.min_p).abs() < SURE).map(|(id, _)| *id));
    tokens.retain(|(_, p)| p / top >= sampling.min_p);
    tokens.sort_by_key(|(id, _)| *id);
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    (tokens.into_iter().map(|(id, p)| (id, p / total)).collect(), unsure)
}

fn options() -> Vec<Sampling> {
    let plain = Sampling::default();
    let mut options = vec![plain];
    for temperature in [0.3, 1.7] {
        options.push(Sampling { temperature, ..plain });
    }
    for top_k in [1, 7, 50, 900, 100_000] {
        options.push(Sampling { top_k: Some(top_k), ..plain });
        options.push(Sampling { top_k: Some(top_k), top_p: 0.9, temperature: 0.7, ..plain });
    }
    for top_p in [1e-9, 0.3, 0.95, 0.9999] {
        options.push(Sampling { top_p, ..plain });
        options.push(Sampling { top_p, min_p: 0.01, ..plain });
    }
    for min_p in [1e-5, 0.05, 1.0] {
        options.push(Sampling { min_p, ..plain });
        options.push(Sampling { min_p, top_k: Some(30), repetition_penalty: 1.3, ..plain });
    }
    options.push(Sampling { repetition_penalty: 0.8, ..plain });
    options
}

#[test]
fn draws_are_what_the_options_say() {
    let check = || {
        for (len, spread) in [(1, 1.0), (5, 2.0), (64, 30.0), (1025, 6.0), (5003, 4.0)] {
            let row = logits(len, len, spread);
            let wide: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let seen: Vec<u32> = (0..len as u32).filter(|id| id % 7 == 3).chain([0, 0]).collect();
            let logits = tensor(&[row]);
            for sampling in options() {
                let (kept, unsure) = kept(&penalised(&wide, &sampling, &seen), &sampling);
                let (log_probs, entropy) = distribution(&wide, sampling.temperature);
                let uniforms: Vec<f64> = (0..40).map(|i| (f64::from(i) + 0.5) / 40.0).collect();
                let draws: Vec<_> = uniforms.iter().map(|&uniform| Draw { row: 0, uniform, seen: &seen }).collect();
                for (sampled, uniform) in sample(&logits, &sampling, &draws).unwrap().iter().zip(uniforms) {
                    let id = sampled.id as usize;
                    let mut before = 0.0;
                    let at = kept.iter().position(|(kept, p)| {
                        before += p;
                        *kept == id
                    });
                    let Some(at) = at else {
                        assert!(unsure.contains(&id), "token {id} of {len} with {sampling:?}");
                        continue;
                    };
                    // What is unsure may move everything by its share.
                    let slack = 1e-5
                        + unsure.iter().map(|id| kept.iter().find(|k| k.0 == *id).map_or(0.0, |k| k.1)).sum::<f64>();
                    let from = before - kept[at].1;
                    assert!(
                        from - slack <= uniform && uniform <= before + slack,
                        "{sampling:?}: {uniform} in {from}..{before}"
                    );
                    assert!((f64::from(sampled.log_prob) - log_probs[id]).abs() < 2e-6 * log_probs[id].abs().max(1.0));
                    assert!((f64::from(sampled.entropy) - entropy).abs() < 2e-6 * entropy.max(1.0), "{entropy}");
                }
            }
        }
    };
    with_each_arch(check);
    without_vectors(check);
}

#[test]
fn every_kept_token_can_be_drawn() {
    let row = logits(130, 3, 3.0);
    let wide: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    for sampling in options().into_iter().filter(|sampling| sampling.repetition_penalty == 1.0) {
        let (kept, unsure) = kept(&wide, &sampling);
        let draws: Vec<_> = (0..20_000).map(|i| Draw { row: 0, uniform: f64::from(i) / 20_000.0, seen: &[] }).collect();
        let sampled = sample(&tensor(std::slice::from_ref(&row)), &sampling, &draws).unwrap();
        for (id, p) in kept {
            let found = sampled.iter().filter(|sampled| sampled.id as usize == id).count() as f64 / 20_000.0;
            assert!(
                (found - p).abs() < 2e-4 || !unsure.is_empty(),
                "token {id}: {found} of the draws, its share is {p}"
            );
        }
    }
}

#[test]
fn the_likeliest_is_the_first_of_the_largest() {
    let mut row = logits(300, 1, 2.0);
    (row[70], row[200], row[201]) = (9.0, 9.0, 8.9);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let first = |sampling: &Sampling, seen: &[u32]| {
        sample(&tensor(std::slice::from_ref(&row)), sampling, &[Draw { row: 0, uniform: 0.9, seen }]).unwrap()[0]
    };
    let sampled = first(&greedy, &[]);
    assert_eq!(sampled.id, 70);
    let wide: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    assert!((f64::from(sampled.log_prob) - distribution(&wide, 1.0).0[70]).abs() < 1e-6);
    let penalty = Sampling { repetition_penalty: 1.5, ..greedy };
    assert_eq!(first(&penalty, &[70]).id, 200);
    assert_eq!(first(&penalty, &[70, 200]).id, 201);
}

#[test]
fn infinite_logits() {
    let one = |row: &[f32], uniform: f64| {
        sample(&tensor(&[row.to_vec()]), &Sampling::default(), &[Draw { row: 0, uniform, seen: &[] }])
    };
    let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
    let sampled = one(&[low, 1.0, low, 1.0, low], 0.7).unwrap()[0];
    assert_eq!((sampled.id, sampled.log_prob), (3, -std::f32::consts::LN_2));
    assert!((sampled.entropy - std::f32::consts::LN_2).abs() < 1e-6);
    // Of infinite logits only the infinite ones count.
    let sampled = one(&[high, 1.0, high, 50.0], 0.7).unwrap()[0];
    assert_eq!((sampled.id, sampled.log_prob), (2, -std::f32::consts::LN_2));
    assert!(one(&[low, low], 0.5).unwrap_err().to_string().contains("no token a probability"));
    assert!(one(&[low, 1.0, f32::NAN], 0.5).unwrap_err().to_string().contains("token 2 is NaN"));
    assert!(one(&[high, 1.0, f32::NAN], 0.5).unwrap_err().to_string().contains("token 2 is NaN"));
}

#[test]
fn draws_do_not_depend_on_each_other_nor_on_threads() {
    let rows: Vec<_> = (0..5).map(|seed| logits(9000, seed, 5.0)).collect();
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        let logits = tensor(&rows).to_dtype(dtype).unwrap();
        for sampling in options() {
            let draws: Vec<_> =
                (0..10).map(|i| Draw { row: i % 5, uniform: i as f64 / 10.0, seen: &[1, 2, 5] }).collect();
            let all = sample(&logits, &sampling, &draws).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            assert_eq!(pool.install(|| sample(&logits, &sampling, &draws).unwrap()), all);
            for (draw, sampled) in draws.iter().zip(&all) {
                let row = logits.narrow(0, draw.row, 1).unwrap();
                assert_eq!(sample(&row, &sampling, &[Draw { row: 0, ..*draw }]).unwrap(), [*sampled]);
            }
        }
    }
}

#[test]
fn what_is_not_there_cannot_be_drawn() {
    let logits = tensor(&[vec![0.0; 4]]);
    let error = |draw: Draw<'_>| sample(&logits, &Sampling::default(), &[draw]).unwrap_err().to_string();
    assert!(error(Draw { row: 1, uniform: 0.0, seen: &[] }).contains("row 1 of 1 rows"));
    assert!(error(Draw { row: 0, uniform: 0.0, seen: &[4] }).contains("token id 4"));
    let flat = logits.flatten_all().unwrap();
    assert!(sample(&flat, &Sampling::default(), &[]).unwrap_err().to_string().contains("(rows, vocabulary)"));
}
