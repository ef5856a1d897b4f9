//! Attention scores are the same with either way to rotate: transformers' of feature i with feature i + half, on rows as PEFT has
//! them, and llama.cpp's of neighbours, on rows as exported.

use crate::gguf::File;
use crate::support::{assert_same, base, base_with, delta, lora};
use candle_core::Tensor;
use proptest::prelude::*;

/// The angle of a pair of features at a position.
fn angle(position: usize, pair: usize) -> f64 {
    position as f64 * 0.7 / (1.0 + pair as f64)
}

/// The product of one head of a query at a position and one of a key at another, rotated as `pairs` says.
fn score(q: &[f64], k: &[f64], positions: (usize, usize), pairs: impl Fn(usize) -> (usize, usize)) -> f64 {
    let rotated = |x: &[f64], position: usize, pair: usize| {
        let ((first, second), (sin, cos)) = (pairs(pair), angle(position, pair).sin_cos());
        (x[first] * cos - x[second] * sin, x[first] * sin + x[second] * cos)
    };
    let one = |pair| {
        let (a, b) = (rotated(q, positions.0, pair), rotated(k, positions.1, pair));
        a.0 * b.0 + a.1 * b.1
    };
    (0..q.len() / 2).map(one).sum()
}

/// The outputs of a weight for an input of ones: the sums of its rows.
fn outputs(weight: &Tensor) -> Vec<f64> {
    weight.sum(1).unwrap().to_vec1().unwrap()
}

proptest! {
    #![proptest_config(peft_testkit::strategy::config(32))]

    #[test]
    fn scores_are_the_same(half in 1usize..5, heads in 1usize..4, groups in 1usize..3, positions in (0usize..9, 0usize..9)) {
        let (size, kv_heads) = (2 * half, heads);
        let heads = heads * groups;
        let (q_path, k_path) = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj");
        let adapter = lora(&[(q_path, heads * size, 5, 2), (k_path, kv_heads * size, 5, 3)]);
        let base = base_with("llama", |config| {
            config["num_attention_heads"] = heads.into();
            config["num_key_value_heads"] = kv_heads.into();
        });
        let file = File::of(&adapter, &base);
        let (q, k) = (outputs(&delta(&adapter, q_path)), outputs(&delta(&adapter, k_path)));
        let (q_out, k_out) = (outputs(&file.delta("blk.0.attn_q.weight")), outputs(&file.delta("blk.0.attn_k.weight")));
        for head in 0..heads {
            let (of_q, of_k) = (head * size..(head + 1) * size, head / groups * size..(head / groups + 1) * size);
            let halves = score(&q[of_q.clone()], &k[of_k.clone()], positions, |pair| (pair, pair + half));
            let neighbours = score(&q_out[of_q], &k_out[of_k], positions, |pair| (2 * pair, 2 * pair + 1));
            // Factors are rounded to f32, and a sum of some products may cancel.
            let size: f64 = q.iter().chain(&k).map(|x| x * x).sum();
            prop_assert!((halves - neighbours).abs() <= 1e-6 * size, "{halves} {neighbours}");
        }
    }
}

#[test]
fn other_architectures_keep_the_order_of_rows() {
    for model_type in ["qwen2", "qwen3", "gemma", "gemma2"] {
        let paths = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"];
        let adapter = lora(&[(paths[0], 16, 5, 2), (paths[1], 8, 5, 2)]);
        let file = File::of(&adapter, &base(model_type));
        for (path, weight) in paths.into_iter().zip(["blk.0.attn_q.weight", "blk.0.attn_k.weight"]) {
            assert_same(model_type, &file.delta(weight), &delta(&adapter, path));
        }
    }
}
