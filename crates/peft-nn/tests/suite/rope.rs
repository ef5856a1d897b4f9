use candle_core::{DType, Tensor, Var};
use peft_nn::{RopeLayout, rope, rope_with_layout};
use proptest::prelude::*;

use crate::support::{assert_close, assert_same_bits, cases, check_gradients, check_sixteen_bit, error, random};

fn tables(angles: &Tensor) -> (Tensor, Tensor) {
    let angles = (angles * 3.0).unwrap();
    (angles.cos().unwrap(), angles.sin().unwrap())
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn gradients(
        (batch, heads, seq, half) in (1usize..3, 1usize..3, 1usize..4, 1usize..4),
        per_batch: bool,
        seed: u64,
    ) {
        let angles = if per_batch { random((batch, seq, half), seed) } else { random((seq, half), seed) };
        let (cos, sin) = tables(&angles);
        let x = random((batch, heads, seq, 2 * half), seed);
        check_gradients(std::slice::from_ref(&x), |v| rope(&v[0], &cos, &sin));
        check_gradients(&[x], |v| rope_with_layout(&v[0], &cos, &sin, RopeLayout::Interleaved));
    }

    #[test]
    fn values_equal_candle(
        (batch, heads, seq, half) in (1usize..4, 1usize..5, 1usize..40, 1usize..20),
        per_batch: bool,
        seed: u64,
    ) {
        let f32s = |t: Tensor| t.to_dtype(DType::F32).unwrap();
        let angles = if per_batch { random((batch, seq, half), seed) } else { random((seq, half), seed) };
        let (cos, sin) = tables(&f32s(angles));
        let x = f32s(random((batch, heads, seq, 2 * half), seed));
        let expected = candle_nn::rotary_emb::rope(&x, &cos, &sin).unwrap();
        assert_same_bits(&rope(&x, &cos, &sin).unwrap(), &expected);
        let expected = candle_nn::rotary_emb::rope_i(&x, &cos, &sin).unwrap();
        assert_same_bits(&rope_with_layout(&x, &cos, &sin, RopeLayout::Interleaved).unwrap(), &expected);
    }
}

#[test]
fn a_strided_input() {
    let (cos, sin) = tables(&random((3, 2), 1));
    check_gradients(&[random((2, 3, 2, 4), 2)], |v| rope(&v[0].transpose(1, 2)?, &cos, &sin));
    check_gradients(&[random((4, 2, 3, 2), 2)], |v| rope(&v[0].transpose(0, 3)?, &cos, &sin));
}

#[test]
fn tables_of_another_dtype_and_tracked_tables_are_constants() {
    let (cos, sin) = tables(&random((3, 2), 1));
    let (cos, sin) = (Var::from_tensor(&cos).unwrap(), Var::from_tensor(&sin).unwrap());
    check_gradients(&[random((2, 2, 3, 4), 2)], |v| rope(&v[0], &cos, &sin));
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        check_sixteen_bit(&[random((2, 2, 3, 4), 2)], |v| rope_with_layout(&v[0], &cos, &sin, layout));
    }
}

#[test]
fn wrong_operands_are_errors() {
    let x = random((2, 2, 3, 4), 2);
    let (cos, sin) = tables(&random((3, 2), 1));
    let (long, _) = tables(&random((5, 2), 1));
    assert!(error(rope(&x, &long, &sin)).contains("cos has shape [5, 2], expected [3, 2] or [2, 3, 2]"));
    assert!(error(rope(&x, &cos, &long)).contains("sin has shape [5, 2]"));
    assert!(error(rope(&x, &cos, &tables(&random((2, 3, 2), 1)).1)).contains("cos has shape [3, 2] but sin [2, 3, 2]"));
    assert!(error(rope(&random((2, 2, 3, 5), 2), &cos, &sin)).contains("head_dim is even, got 5"));
    assert!(error(rope(&random((3, 4), 2), &cos, &sin)).contains("(batch, heads, seq, head_dim)"));
}

#[test]
fn rotating_back_restores_the_input() {
    let x = random((1, 2, 3, 4), 2);
    let (cos, sin) = tables(&random((3, 2), 1));
    let there = rope(&x, &cos, &sin).unwrap();
    assert_close(&rope(&there, &cos, &sin.neg().unwrap()).unwrap(), &x, 1e-14);
}
