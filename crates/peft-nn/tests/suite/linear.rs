use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{LowRank, WeightLayout, linear, linear_low_rank};
use proptest::prelude::*;

use crate::support::{assert_close, assert_same_bits, cases, check_gradients, check_sixteen_bit, error, random};

fn stored(weight: &Tensor, layout: WeightLayout) -> Tensor {
    layout.out_in(weight).unwrap().contiguous().unwrap()
}

fn layouts() -> impl Strategy<Value = WeightLayout> {
    prop_oneof![Just(WeightLayout::OutIn), Just(WeightLayout::InOut)]
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn gradients_of_every_mix_of_frozen_and_trained(
        layout in layouts(),
        leading in prop::collection::vec(1usize..4, 1..4),
        (inner, outer) in (1usize..5, 1usize..5),
        with_bias: bool,
        tracked in 1usize..8,
        seed: u64,
    ) {
        let mut dims = leading;
        dims.push(inner);
        let mut all = vec![random(dims, seed), stored(&random((outer, inner), seed ^ 1), layout)];
        if with_bias {
            all.push(random(outer, seed ^ 2));
        }
        let is_tracked = |i: usize| tracked >> i & 1 == 1;
        let inputs: Vec<Tensor> = (0..all.len()).filter(|&i| is_tracked(i)).map(|i| all[i].clone()).collect();
        prop_assume!(!inputs.is_empty());
        check_gradients(&inputs, |tracked| {
            let mut tracked = tracked.iter();
            let mut operand = |i: usize| if is_tracked(i) { tracked.next().unwrap() } else { &all[i] };
            let (x, weight) = (operand(0), operand(1));
            let bias = with_bias.then(|| operand(2));
            linear(x, weight, layout, bias)
        });
    }

    #[test]
    fn equals_candle_in_f32(
        layout in layouts(),
        (rows, inner, outer) in (1usize..40, 1usize..40, 1usize..40),
        seed: u64,
    ) {
        let x = random((2, rows, inner), seed).to_dtype(DType::F32).unwrap();
        let weight = random((outer, inner), seed ^ 1).to_dtype(DType::F32).unwrap();
        let bias = random(outer, seed ^ 2).to_dtype(DType::F32).unwrap();
        let expected = candle_nn::Linear::new(weight.clone(), Some(bias.clone()));
        let expected = candle_core::Module::forward(&expected, &x).unwrap();
        let actual = linear(&x, &stored(&weight, layout), layout, Some(&bias)).unwrap();
        prop_assert!(!actual.track_op());
        assert_close(&actual, &expected, 1e-5);
    }
}

#[test]
fn gradients_of_a_low_rank_change() {
    for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
        let weight = stored(&random((4, 5), 1), layout);
        let bias = random(4, 2);
        let (a, b, mixing) = (random((2, 5), 3), random((4, 2), 4), random((2, 2), 5));
        let x = random((2, 3, 5), 6);
        // LoRA: the factors are trained; TinyLoRA: what lies between them.
        check_gradients(&[x.clone(), a.clone(), b.clone()], |v| {
            let change = LowRank::new(v[1].clone(), v[2].clone()).with_scale(1.5);
            linear_low_rank(&v[0], &weight, layout, Some(&bias), &change)
        });
        check_gradients(&[x, mixing], |v| {
            let change = LowRank::new(a.clone(), b.clone()).with_mixing(v[1].clone()).with_scale(1.5);
            linear_low_rank(&v[0], &weight, layout, Some(&bias), &change)
        });
    }
}

#[test]
fn a_low_rank_change_is_that_of_the_weight() {
    let (x, weight) = (random((3, 7), 1), random((5, 7), 2));
    let (a, b, mixing) = (random((2, 7), 3), random((5, 2), 4), random((2, 2), 5));
    let delta = (b.matmul(&mixing).unwrap().matmul(&a).unwrap() * 0.5).unwrap();
    let expected = linear(&x, &(&weight + delta).unwrap(), WeightLayout::OutIn, None).unwrap();
    for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
        let own = |t: &Tensor| t.to_dtype(dtype).unwrap();
        let change = LowRank::new(own(&a), own(&b)).with_mixing(own(&mixing)).with_scale(0.5);
        let actual = linear_low_rank(&own(&x), &own(&weight), WeightLayout::OutIn, None, &change).unwrap();
        assert_close(&actual, &expected, tolerance);
    }
}

#[test]
fn a_wrong_low_rank_change_is_an_error() {
    let (x, weight) = (random((2, 3), 1), random((4, 3), 2));
    let apply = |change: &LowRank| error(linear_low_rank(&x, &weight, WeightLayout::OutIn, None, change));
    let (a, b) = (random((2, 3), 3), random((4, 2), 4));
    assert!(
        apply(&LowRank::new(random((2, 4), 3), b.clone()))
            .contains("`a` of a low-rank change has shape [2, 4], expected [2, 3]")
    );
    assert!(
        apply(&LowRank::new(a.clone(), random((4, 3), 4)))
            .contains("`b` of a low-rank change has shape [4, 3], expected [4, 2]")
    );
    let change = LowRank::new(a.clone(), b.clone());
    assert!(
        apply(&change.clone().with_mixing(random((2, 3), 5)))
            .contains("`mixing` of a low-rank change has shape [2, 3]")
    );
    let half = b.to_dtype(DType::F32).unwrap();
    assert!(
        apply(&LowRank::new(a, half)).contains("a low-rank change of a f64, b f32 does not go with an input of f64")
    );
}

#[test]
fn both_layouts_give_the_same_result() {
    let (x, weight) = (random((3, 4), 1), random((5, 4), 2));
    let out_in = linear(&x, &weight, WeightLayout::OutIn, None).unwrap();
    let in_out = linear(&x, &stored(&weight, WeightLayout::InOut), WeightLayout::InOut, None).unwrap();
    assert_close(&in_out, &out_in, 1e-15);
}

#[test]
fn strided_operands() {
    let x = random((4, 3, 2), 1);
    let weight = random((5, 8), 2);
    check_gradients(&[x.clone(), weight.clone()], |v| {
        let every_other = v[1].reshape((5, 4, 2))?.narrow(2, 1, 1)?.squeeze(2)?;
        linear(&v[0].transpose(0, 2)?, &every_other, WeightLayout::OutIn, None)
    });
    let transposed = weight.narrow(1, 2, 4).unwrap().t().unwrap();
    let view = linear(&x.transpose(0, 2).unwrap(), &transposed, WeightLayout::InOut, None).unwrap();
    let copied = linear(
        &x.transpose(0, 2).unwrap().contiguous().unwrap(),
        &transposed.contiguous().unwrap(),
        WeightLayout::InOut,
        None,
    );
    assert_close(&view, &copied.unwrap(), 1e-15);
}

#[test]
fn sixteen_bit_types() {
    let inputs = [random((2, 3, 8), 1), random((4, 8), 2), random(4, 3)];
    check_sixteen_bit(&inputs, |v| linear(&v[0], &v[1], WeightLayout::OutIn, Some(&v[2])));
}

#[test]
fn an_empty_batch_gives_an_empty_result() -> Result<()> {
    let x = Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?;
    let weight = Tensor::zeros((5, 4), DType::F32, &Device::Cpu)?;
    let bias = Tensor::zeros(5, DType::F32, &Device::Cpu)?;
    assert_eq!(linear(&x, &weight, WeightLayout::OutIn, Some(&bias))?.dims(), [0, 5]);
    Ok(())
}

#[test]
fn a_second_backward_gives_the_same_gradient() -> Result<()> {
    let x = Var::from_tensor(&random((2, 3), 1))?;
    let loss = linear(&x, &random((4, 3), 2), WeightLayout::OutIn, None)?.sqr()?.sum_all()?;
    let first = loss.backward()?.get(&x).unwrap().clone();
    assert_same_bits(loss.backward()?.get(&x).unwrap(), &first);
    Ok(())
}

#[test]
fn wrong_operands_are_errors() {
    let (x, weight, bias) = (random((2, 3), 1), random((4, 3), 2), random(4, 3));
    let out_in = WeightLayout::OutIn;
    assert!(error(linear(&x, &random((4, 5), 2), out_in, None)).contains("last dimension is 3 but the weight takes 5"));
    assert!(error(linear(&x, &weight, WeightLayout::InOut, None)).contains("the weight takes 4"));
    assert!(error(linear(&random(3, 1), &weight, out_in, None)).contains("at least two dimensions"));
    assert!(error(linear(&x, &random((4, 3, 1), 2), out_in, None)).contains("two dimensions, got [4, 3, 1]"));
    assert!(error(linear(&x, &weight, out_in, Some(&random(3, 3)))).contains("bias has shape [3], expected [4]"));
    let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
    assert!(error(linear(&half(&x), &weight, out_in, None)).contains("weight is f64 but the input is bf16"));
    assert!(error(linear(&x, &weight, out_in, Some(&half(&bias)))).contains("bias is bf16"));
    let ids = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
    assert!(error(linear(&ids, &ids, out_in, None)).contains("u32"));
}
