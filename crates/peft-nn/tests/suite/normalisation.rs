use candle_core::{DType, Tensor};
use peft_nn::{layer_norm, rms_norm};
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, check_sixteen_bit, error, random};

const EPS: f64 = 1e-5;

fn f32s(tensor: Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn rms_norm_gradients(rows in 1usize..5, width in 1usize..7, seed: u64) {
        let (x, weight) = (random((2, rows, width), seed), random(width, seed ^ 1));
        check_gradients(&[x.clone(), weight.clone()], |v| rms_norm(&v[0], &v[1], EPS));
        check_gradients(std::slice::from_ref(&x), |v| rms_norm(&v[0], &weight, EPS));
        check_gradients(std::slice::from_ref(&weight), |v| rms_norm(&x, &v[0], EPS));
    }

    #[test]
    fn layer_norm_gradients(rows in 1usize..5, width in 2usize..7, tracked in 1usize..8, seed: u64) {
        let all = [random((rows, width), seed), random(width, seed ^ 1), random(width, seed ^ 2)];
        let is_tracked = |i: usize| tracked >> i & 1 == 1;
        let inputs: Vec<Tensor> = (0..3).filter(|&i| is_tracked(i)).map(|i| all[i].clone()).collect();
        check_gradients(&inputs, |tracked| {
            let mut tracked = tracked.iter();
            let [x, weight, bias] =
                [0, 1, 2].map(|i| if is_tracked(i) { tracked.next().unwrap() } else { &all[i] });
            layer_norm(x, weight, Some(bias), EPS)
        });
    }

    #[test]
    fn values_equal_candle(rows in 1usize..80, width in 1usize..300, seed: u64) {
        let x = f32s(random((rows, width), seed));
        let (weight, bias) = (f32s(random(width, seed ^ 1)), f32s(random(width, seed ^ 2)));
        let expected = candle_nn::ops::rms_norm(&x, &weight, EPS as f32).unwrap();
        assert_close(&rms_norm(&x, &weight, EPS).unwrap(), &expected, 1e-5);
        let expected = candle_nn::ops::layer_norm_slow(&x, &weight, &bias, EPS as f32).unwrap();
        assert_close(&layer_norm(&x, &weight, Some(&bias), EPS).unwrap(), &expected, 1e-4);
    }
}

#[test]
fn strided_inputs() {
    check_gradients(&[random((4, 3), 1), random((3, 4), 2)], |v| {
        rms_norm(&v[0].t()?, &v[1].narrow(0, 1, 1)?.squeeze(0)?, EPS)
    });
    check_gradients(&[random((4, 3), 1), random((4, 2), 2)], |v| {
        layer_norm(&v[0].t()?, &v[1].narrow(1, 1, 1)?.squeeze(1)?, None, EPS)
    });
}

#[test]
fn sixteen_bit_types() {
    let inputs = [random((3, 64), 1), random(64, 2), random(64, 3)];
    check_sixteen_bit(&inputs[..2], |v| rms_norm(&v[0], &v[1], EPS));
    check_sixteen_bit(&inputs, |v| layer_norm(&v[0], &v[1], Some(&v[2]), EPS));
}

#[test]
fn the_sum_of_squares_of_an_f16_row_may_exceed_f16() {
    let x = Tensor::full(2000f32, (1, 32), &candle_core::Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
    let ones = x.ones_like().unwrap().squeeze(0).unwrap();
    assert_close(&rms_norm(&x, &ones, EPS).unwrap(), &x.ones_like().unwrap(), 1e-3);
}

#[test]
fn a_row_of_zeros_has_finite_gradients() {
    let x = random((2, 3), 1).zeros_like().unwrap();
    check_gradients(std::slice::from_ref(&x), |v| rms_norm(&v[0], &random(3, 2), 0.1));
    check_gradients(&[x], |v| layer_norm(&v[0], &random(3, 2), None, 0.1));
}

#[test]
fn an_empty_batch_gives_an_empty_result_and_a_zero_gradient_of_the_weight() {
    check_gradients(&[random((0, 3), 1), random(3, 2)], |v| rms_norm(&v[0], &v[1], EPS));
    check_gradients(&[random((0, 3), 1), random(3, 2), random(3, 3)], |v| layer_norm(&v[0], &v[1], Some(&v[2]), EPS));
}

#[test]
fn wrong_operands_are_errors() {
    let x = random((2, 3), 1);
    assert!(error(rms_norm(&x, &random(4, 2), EPS)).contains("weight has shape [4], expected [3]"));
    assert!(error(rms_norm(&x, &f32s(random(3, 2)), EPS)).contains("weight is f32 but the input is f64"));
    assert!(error(layer_norm(&x, &random(3, 2), Some(&random(4, 2)), EPS)).contains("bias has shape [4]"));
    let scalar = x.sum_all().unwrap();
    assert!(error(layer_norm(&scalar, &scalar, None, EPS)).contains("scalar"));
}
