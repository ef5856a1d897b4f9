use candle_core::{DType, Result, Tensor};
use peft_nn::{AttentionOptions, Heads, Rotary, attention, multi_head_attention, rope};
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, check_sixteen_bit, error, random};

const HEADS: Heads = Heads { query: 4, key_value: 2 };

/// `q`, `k` and `v` of heads that are `width` wide, values one more.
fn qkv(batch: usize, [queries, keys]: [usize; 2], width: usize, seed: u64) -> [Tensor; 3] {
    [
        random((batch, queries, HEADS.query * width), seed),
        random((batch, keys, HEADS.key_value * width), seed ^ 1),
        random((batch, keys, HEADS.key_value * (width + 1)), seed ^ 2),
    ]
}

/// cos and sin of angles that no model has.
fn tables(shape: &[usize], seed: u64) -> [Tensor; 2] {
    let angles = (random(shape, seed) * 3.0).unwrap();
    [angles.cos().unwrap(), angles.sin().unwrap()]
}

/// The operators that it stands for, one after another.
fn one_by_one([q, k, v]: [&Tensor; 3], tables: Option<&[Tensor; 2]>, options: &AttentionOptions) -> Result<Tensor> {
    let separate = |t: &Tensor, heads: usize| {
        let (batch, positions, width) = t.dims3()?;
        t.reshape((batch, positions, heads, width / heads))?.transpose(1, 2)
    };
    let (mut q, mut k) = (separate(q, HEADS.query)?, separate(k, HEADS.key_value)?);
    if let Some([cos, sin]) = tables {
        let (queries, keys) = (q.dim(2)?, k.dim(2)?);
        let last = |t: &Tensor| t.narrow(t.rank() - 2, keys - queries, queries);
        (q, k) = (rope(&q, &last(cos)?, &last(sin)?)?, rope(&k, cos, sin)?);
    }
    let output = attention(&q, &k, &separate(v, HEADS.key_value)?, options)?;
    let (batch, heads, queries, width) = output.dims4()?;
    output.transpose(1, 2)?.reshape((batch, queries, heads * width))
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn gradients(
        (batch, queries, past) in (1usize..3, 1usize..4, 0usize..3),
        (causal, rotary, per_row) in any::<(bool, bool, bool)>(),
        tracked in 1usize..8,
        seed: u64,
    ) {
        let all = qkv(batch, [queries, queries + past], 4, seed);
        let shape = if per_row { vec![batch, queries + past, 2] } else { vec![queries + past, 2] };
        let tables = rotary.then(|| tables(&shape, seed ^ 3));
        let options = if causal { AttentionOptions::causal() } else { AttentionOptions::full() };
        let is_tracked = |i: usize| tracked >> i & 1 == 1;
        let inputs: Vec<Tensor> = (0..3).filter(|&i| is_tracked(i)).map(|i| all[i].clone()).collect();
        check_gradients(&inputs, |tracked| {
            let mut tracked = tracked.iter();
            let [q, k, v] = [0, 1, 2].map(|i| if is_tracked(i) { tracked.next().unwrap() } else { &all[i] });
            let rotary = tables.as_ref().map(|[cos, sin]| Rotary { cos, sin });
            multi_head_attention(q, k, v, HEADS, rotary, &options)
        });
    }
}

#[test]
fn it_is_its_parts_one_by_one() {
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-6), (DType::BF16, 1.0 / 128.0)] {
        for (positions, per_row) in [([9, 9], false), ([3, 40], true), ([70, 70], true)] {
            let [q, k, v] = qkv(2, positions, 8, 1).map(|t| t.to_dtype(dtype).unwrap());
            let shape = if per_row { vec![2, positions[1], 4] } else { vec![positions[1], 4] };
            let [cos, sin] = tables(&shape, 4);
            let options = AttentionOptions::causal().with_window(20);
            let rotary = Some(Rotary { cos: &cos, sin: &sin });
            let output = multi_head_attention(&q, &k, &v, HEADS, rotary, &options).unwrap();
            let expected = one_by_one([&q, &k, &v], Some(&[cos, sin]), &options).unwrap();
            assert_close(&output, &expected, tolerance);
            let output = multi_head_attention(&q, &k, &v, HEADS, None, &options).unwrap();
            assert_close(&output, &one_by_one([&q, &k, &v], None, &options).unwrap(), tolerance);
        }
    }
}

#[test]
fn parts_of_one_projection_are_read_in_place() {
    let widths = [HEADS.query, HEADS.key_value, HEADS.key_value].map(|heads| heads * 4);
    let [cos, sin] = tables(&[3, 2], 4);
    check_gradients(&[random((2, 3, widths.iter().sum()), 1)], |t| {
        let part = |start, len| t[0].narrow(2, start, len);
        let (q, k) = (part(0, widths[0])?, part(widths[0], widths[1])?);
        let v = part(widths[0] + widths[1], widths[2])?;
        let rotary = Some(Rotary { cos: &cos, sin: &sin });
        multi_head_attention(&q, &k, &v, HEADS, rotary, &AttentionOptions::causal())
    });
}

#[test]
fn sixteen_bit_types() {
    let [cos, sin] = tables(&[9, 4], 4);
    check_sixteen_bit(&qkv(2, [9, 9], 8, 1), |t| {
        let rotary = Some(Rotary { cos: &cos, sin: &sin });
        multi_head_attention(&t[0], &t[1], &t[2], HEADS, rotary, &AttentionOptions::causal())
    });
}

#[test]
fn wrong_operands_are_errors() {
    let [q, k, v] = qkv(2, [3, 3], 4, 1);
    let options = AttentionOptions::full();
    let fails = |[q, k, v]: [&Tensor; 3], heads, rotary| error(multi_head_attention(q, k, v, heads, rotary, &options));
    let heads = |query, key_value| Heads { query, key_value };
    assert!(fails([&q.squeeze(0).unwrap().get(0).unwrap(), &k, &v], HEADS, None).contains("three dimensions"));
    assert!(fails([&q, &k, &v], heads(3, 1), None).contains("16 columns of q are not a multiple of 3 heads"));
    assert!(fails([&q, &k, &v], heads(4, 0), None).contains("10 columns of v are not a multiple of 0 key heads"));
    assert!(fails([&q, &k, &v], heads(8, 2), None).contains("do not fit together"));
    assert!(fails([&q, &k.narrow(1, 0, 2).unwrap(), &v], HEADS, None).contains("do not fit together"));
    let same = [&q, &q, &q];
    assert!(fails(same, heads(0, 0), None).contains("not a multiple of 0 heads"));
    let [cos, sin] = tables(&[3, 2], 1);
    let rotary = |cos, sin| Some(Rotary { cos, sin });
    assert!(fails(same, heads(16, 16), rotary(&cos, &sin)).contains("head_dim is even where it is rotated, got 1"));
    let [short, _] = tables(&[2, 2], 1);
    assert!(
        fails([&q, &k, &v], HEADS, rotary(&short, &sin)).contains("cos has shape [2, 2], expected [3, 2] or [2, 3, 2]")
    );
    let [_, of_each] = tables(&[2, 3, 2], 1);
    assert!(fails([&q, &k, &v], HEADS, rotary(&cos, &of_each)).contains("cos has shape [3, 2] but sin [2, 3, 2]"));
    let more = qkv(2, [4, 3], 4, 1);
    let more = [&more[0], &more[1], &more[2]];
    assert!(fails(more, HEADS, rotary(&cos, &sin)).contains("4 queries have no place in rotary tables for 3 keys"));
    let ids = cos.to_dtype(DType::U32).unwrap();
    assert!(fails([&q, &k, &v], HEADS, rotary(&ids, &sin)).contains("cos is u32"));
}
