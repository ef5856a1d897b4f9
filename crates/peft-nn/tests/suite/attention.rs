use candle_core::{D, DType, Device, Result, Tensor, Var};
use peft_nn::{AttentionOptions, attention};
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, check_sixteen_bit, elements, error, random};

/// Attention as the formula has it: keys and values repeated for every head, the mask added, candle's own operations.
fn explicit(q: &Tensor, k: &Tensor, v: &Tensor, visible: &Tensor, scale: f64) -> Result<Tensor> {
    let groups = q.dim(1)? / k.dim(1)?;
    let repeat = |t: &Tensor| {
        let (batch, heads, keys, width) = t.dims4()?;
        t.unsqueeze(2)?.broadcast_as((batch, heads, groups, keys, width))?.reshape((batch, heads * groups, keys, width))
    };
    let scores = (q.matmul(&repeat(k)?.t()?)? * scale)?;
    let hidden = Tensor::new(f64::NEG_INFINITY, &Device::Cpu)?.to_dtype(scores.dtype())?;
    let scores = visible.broadcast_as(scores.shape())?.where_cond(&scores, &hidden.broadcast_as(scores.shape())?)?;
    candle_nn::ops::softmax(&scores, D::Minus1)?.contiguous()?.matmul(&repeat(v)?)
}

/// `(batch, 1, queries, keys)`, one where query `i` sees key `j`.
fn visible(batch: usize, queries: usize, keys: usize, sees: impl Fn(usize, usize, usize) -> bool) -> Tensor {
    let mut mask = Vec::new();
    for b in 0..batch {
        for i in 0..queries {
            mask.extend((0..keys).map(|j| u8::from(sees(b, i, j))));
        }
    }
    Tensor::from_vec(mask, (batch, 1, queries, keys), &Device::Cpu).unwrap()
}

/// A padding mask whose first row has `padding` hidden keys at the left and whose other rows have none.
fn left_padding(batch: usize, keys: usize, padding: usize) -> Tensor {
    let mask = (0..batch * keys).map(|i| u8::from(i >= padding)).collect();
    Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap()
}

fn qkv(
    batch: usize,
    [heads, kv_heads]: [usize; 2],
    [queries, keys]: [usize; 2],
    width: usize,
    seed: u64,
) -> [Tensor; 3] {
    [
        random((batch, heads, queries, width), seed),
        random((batch, kv_heads, keys, width), seed ^ 1),
        random((batch, kv_heads, keys, width + 1), seed ^ 2),
    ]
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn gradients(
        (batch, kv_heads, groups, queries, past) in (1usize..3, 1usize..3, 1usize..3, 1usize..4, 0usize..3),
        (causal, window) in (any::<bool>(), prop::option::of(1usize..4)),
        padding in 0usize..2,
        tracked in 1usize..8,
        seed: u64,
    ) {
        let all = qkv(batch, [kv_heads * groups, kv_heads], [queries, queries + past], 2, seed);
        let mut options = if causal { AttentionOptions::causal() } else { AttentionOptions::full() };
        if let Some(window) = window {
            options = options.with_window(window);
        }
        if padding > 0 {
            options = options.with_key_padding(left_padding(batch, queries + past, padding));
        }
        let is_tracked = |i: usize| tracked >> i & 1 == 1;
        let inputs: Vec<Tensor> = (0..3).filter(|&i| is_tracked(i)).map(|i| all[i].clone()).collect();
        check_gradients(&inputs, |tracked| {
            let mut tracked = tracked.iter();
            let [q, k, v] = [0, 1, 2].map(|i| if is_tracked(i) { tracked.next().unwrap() } else { &all[i] });
            attention(q, k, v, &options)
        });
    }

    #[test]
    fn values_equal_the_explicit_formula(
        (batch, kv_heads, groups, queries, past) in (1usize..3, 1usize..4, 1usize..4, 1usize..20, 0usize..20),
        (causal, padded) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let keys = queries + past;
        // At least one key remains visible to every query.
        let padding = if padded { if causal { past } else { keys - 1 } } else { 0 };
        let [q, k, v] = qkv(batch, [kv_heads * groups, kv_heads], [queries, keys], 8, seed)
            .map(|t| t.to_dtype(DType::F32).unwrap());
        let mut options = if causal { AttentionOptions::causal() } else { AttentionOptions::full() }.with_scale(0.7);
        if padded {
            options = options.with_key_padding(left_padding(batch, keys, padding));
        }
        let sees = visible(batch, queries, keys, |b, i, j| (!causal || j <= past + i) && (b > 0 || j >= padding));
        let expected = explicit(&q, &k, &v, &sees, 0.7).unwrap();
        assert_close(&attention(&q, &k, &v, &options).unwrap(), &expected, 1e-5);
    }
}

#[test]
fn a_window_shows_the_last_keys_up_to_a_query() {
    for window in 1..8 {
        let [q, k, v] = qkv(2, [4, 2], [4, 6], 4, 1);
        let sees = visible(2, 4, 6, |_, i, j| j <= 2 + i && j + window > 2 + i);
        let expected = explicit(&q, &k, &v, &sees, 0.5).unwrap();
        let options = AttentionOptions::causal().with_window(window);
        assert_close(&attention(&q, &k, &v, &options).unwrap(), &expected, 1e-14);
    }
}

#[test]
fn the_default_scale_is_the_inverse_root_of_head_dim() {
    let [q, k, v] = qkv(1, [2, 2], [3, 3], 4, 1);
    let expected = explicit(&q, &k, &v, &visible(1, 3, 3, |_, _, _| true), 0.5).unwrap();
    assert_close(&attention(&q, &k, &v, &AttentionOptions::full()).unwrap(), &expected, 1e-14);
}

#[test]
fn decoding_one_token_at_a_time_equals_the_whole_sequence() {
    let [q, k, v] = qkv(2, [4, 2], [5, 5], 4, 1);
    let options = AttentionOptions::causal();
    let whole = attention(&q, &k, &v, &options).unwrap();
    for i in 0..5 {
        let first = |t: &Tensor| t.narrow(2, 0, i + 1).unwrap();
        let step = attention(&q.narrow(2, i, 1).unwrap(), &first(&k), &first(&v), &options).unwrap();
        assert_close(&step, &whole.narrow(2, i, 1).unwrap(), 1e-14);
    }
}

#[test]
fn a_query_without_visible_keys_gives_zeros_and_no_gradient() {
    // Left padding of two: the first two queries of the first row see nothing.
    let [q, k, v] = qkv(2, [2, 1], [3, 3], 2, 1);
    let options = AttentionOptions::causal().with_key_padding(left_padding(2, 3, 2));
    let output = attention(&q, &k, &v, &options).unwrap();
    let unseeing = output.narrow(0, 0, 1).unwrap().narrow(2, 0, 2).unwrap();
    assert!(elements(&unseeing).iter().all(|&x| x == 0.0));
    assert!(elements(&output).iter().all(|x| x.is_finite()));
    check_gradients(&[q, k, v], |t| attention(&t[0], &t[1], &t[2], &options));
}

#[test]
fn hidden_keys_may_hold_anything() {
    let [q, k, v] = qkv(1, [1, 1], [2, 2], 2, 1);
    let options = AttentionOptions::full().with_key_padding(left_padding(1, 2, 1));
    let expected = attention(&q, &k, &v, &options).unwrap();
    let huge = left_padding(1, 2, 1).to_dtype(DType::F64).unwrap().affine(-1e300, 1e300).unwrap();
    let k = k.broadcast_add(&huge.reshape((1, 1, 2, 1)).unwrap()).unwrap();
    assert_close(&attention(&q, &k, &v, &options).unwrap(), &expected, 0.0);
}

#[test]
fn hidden_keys_and_values_may_be_nan_in_both_passes() {
    let [q, k, v] = qkv(1, [2, 1], [3, 3], 2, 1);
    let options = AttentionOptions::full().with_key_padding(left_padding(1, 3, 1));
    let nan = |t: &Tensor| {
        let first = (t.narrow(2, 0, 1).unwrap() * f64::NAN).unwrap();
        Tensor::cat(&[first, t.narrow(2, 1, 2).unwrap()], 2).unwrap()
    };
    let run = |k: &Tensor, v: &Tensor| {
        let vars = [&q, k, v].map(|t| Var::from_tensor(t).unwrap());
        let output = attention(&vars[0], &vars[1], &vars[2], &options).unwrap();
        let grads = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let grads = vars.map(|var| grads.get(&var).unwrap().clone());
        grads.into_iter().chain([output]).collect::<Vec<_>>()
    };
    for (with_nan, without) in run(&nan(&k), &nan(&v)).iter().zip(run(&k, &v)) {
        assert_close(with_nan, &without, 0.0);
    }
}

#[test]
fn nan_is_not_lost() {
    for queries in [1, 40] {
        let [q, k, v] = qkv(1, [1, 1], [queries, 40], 4, 1).map(|t| t.to_dtype(DType::F32).unwrap());
        let output = attention(&(q * f64::NAN).unwrap(), &k, &v, &AttentionOptions::causal()).unwrap();
        assert!(elements(&output).iter().all(|x| x.is_nan()));
    }
    // In one of several parts of the keys that are brought together.
    let [q, k, v] = qkv(1, [1, 1], [1, 3000], 4, 1).map(|t| t.to_dtype(DType::F32).unwrap());
    let part = |first: usize, len: usize| k.narrow(2, first, len).unwrap();
    let k = Tensor::cat(&[part(0, 1024), (part(1024, 1024) * f64::NAN).unwrap(), part(2048, 952)], 2).unwrap();
    let output = attention(&q, &k, &v, &AttentionOptions::causal()).unwrap();
    assert!(elements(&output).iter().all(|x| x.is_nan()));
}

#[test]
fn masks_of_any_integer_dtype() {
    let [q, k, v] = qkv(1, [1, 1], [2, 3], 2, 1);
    let with = |dtype: DType| {
        let mask = left_padding(1, 3, 1).to_dtype(dtype).unwrap();
        attention(&q, &k, &v, &AttentionOptions::full().with_key_padding(mask)).unwrap()
    };
    assert_close(&with(DType::I64), &with(DType::U8), 0.0);
    assert_close(&with(DType::U32), &with(DType::U8), 0.0);
}

#[test]
fn strided_inputs() {
    let inputs = [random((2, 3, 2, 4), 1), random((2, 3, 1, 4), 2), random((2, 3, 1, 4), 3)];
    check_gradients(&inputs, |t| {
        let [q, k, v] = [0, 1, 2].map(|i| t[i].transpose(1, 2));
        attention(&q?, &k?, &v?, &AttentionOptions::causal())
    });
}

#[test]
fn rows_that_are_not_contiguous() {
    let inputs = [random((1, 2, 4, 3), 1), random((1, 1, 4, 3), 2), random((1, 1, 4, 3), 3)];
    check_gradients(&inputs, |t| {
        let [q, k, v] = [0, 1, 2].map(|i| t[i].transpose(2, 3));
        attention(&q?, &k?, &v?, &AttentionOptions::causal())
    });
}

#[test]
fn one_tensor_as_query_key_and_value() {
    check_gradients(&[random((1, 2, 3, 2), 1)], |t| attention(&t[0], &t[0], &t[0], &AttentionOptions::causal()));
}

#[test]
fn sixteen_bit_types() {
    let inputs = qkv(2, [4, 2], [6, 9], 8, 1);
    let options = AttentionOptions::causal().with_key_padding(left_padding(2, 9, 4));
    check_sixteen_bit(&inputs, |t| attention(&t[0], &t[1], &t[2], &options));
}

#[test]
fn no_keys_give_zeros_and_an_empty_batch_an_empty_result() {
    let [q, k, v] = qkv(2, [4, 2], [3, 3], 4, 1);
    let none = |t: &Tensor| t.narrow(2, 0, 0).unwrap();
    let output = attention(&q, &none(&k), &none(&v), &AttentionOptions::full()).unwrap();
    assert_eq!(output.dims(), [2, 4, 3, 5]);
    assert!(elements(&output).iter().all(|&x| x == 0.0));
    let [q, k, v] = [q, k, v].map(|t| t.narrow(0, 0, 0).unwrap());
    assert_eq!(attention(&q, &k, &v, &AttentionOptions::causal()).unwrap().dims(), [0, 4, 3, 5]);
}

#[test]
fn wrong_operands_are_errors() {
    let [q, k, v] = qkv(2, [4, 2], [3, 3], 4, 1);
    let full = AttentionOptions::full();
    let fails = |q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions| error(attention(q, k, v, options));
    assert!(fails(&q.squeeze(0).unwrap().narrow(0, 0, 1).unwrap().squeeze(0).unwrap(), &k, &v, &full).contains("four"));
    assert!(fails(&q, &k, &v.narrow(2, 0, 2).unwrap(), &full).contains("do not fit"));
    assert!(fails(&q, &k.narrow(3, 0, 2).unwrap(), &v, &full).contains("do not fit"));
    assert!(fails(&q.narrow(1, 0, 3).unwrap(), &k, &v, &full).contains("3 query heads"));
    assert!(fails(&q, &k.to_dtype(DType::F32).unwrap(), &v, &full).contains("key is f32"));
    let last = |t: &Tensor| t.narrow(2, 0, 2).unwrap();
    assert!(fails(&q, &last(&k), &last(&v), &AttentionOptions::causal()).contains("at least as many keys, got 2"));
    assert!(fails(&q, &k, &v, &AttentionOptions::causal().with_window(0)).contains("window is 0 keys"));
    let padding = |mask: Tensor| AttentionOptions::full().with_key_padding(mask);
    assert!(fails(&q, &k, &v, &padding(left_padding(2, 4, 0))).contains("mask has shape [2, 4], expected [2, 3]"));
    assert!(fails(&q, &k, &v, &padding(random((2, 3), 1))).contains("integer"));
}
