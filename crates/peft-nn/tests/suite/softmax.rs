use candle_core::{DType, Device, Tensor};
use peft_nn::softmax_last_dim;
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, check_sixteen_bit, elements, error, random};

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn gradients_and_values(rows in 1usize..5, width in 1usize..7, seed: u64) {
        let x = (random((2, rows, width), seed) * 4.0).unwrap();
        check_gradients(std::slice::from_ref(&x), |v| softmax_last_dim(&v[0]));
        let x = x.to_dtype(DType::F32).unwrap();
        let expected = candle_nn::ops::softmax_last_dim(&x).unwrap();
        assert_close(&softmax_last_dim(&x).unwrap(), &expected, 1e-6);
    }
}

#[test]
fn a_large_matrix_equals_candle() {
    let x = random((300, 200), 1).to_dtype(DType::F32).unwrap();
    assert_close(&softmax_last_dim(&x).unwrap(), &candle_nn::ops::softmax_last_dim(&x).unwrap(), 1e-6);
}

#[test]
fn strided_inputs_and_sixteen_bit_types() {
    check_gradients(&[random((4, 3), 1)], |v| softmax_last_dim(&v[0].t()?));
    check_sixteen_bit(&[random((3, 40), 1)], |v| softmax_last_dim(&v[0]));
}

#[test]
fn large_and_infinite_scores() {
    let scores = |row: [f32; 3]| softmax_last_dim(&Tensor::new(&row, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(elements(&scores([1e30, -1e30, f32::NEG_INFINITY])), [1.0, 0.0, 0.0]);
    assert!(elements(&scores([f32::NEG_INFINITY; 3])).iter().all(|p| p.is_nan()));
    assert!(elements(&scores([f32::NAN, 0.0, 1.0])).iter().all(|p| p.is_nan()));
}

#[test]
fn wrong_operands_are_errors() {
    assert!(error(softmax_last_dim(&Tensor::new(1f32, &Device::Cpu).unwrap())).contains("scalar"));
    assert!(error(softmax_last_dim(&Tensor::new(&[1u32], &Device::Cpu).unwrap())).contains("u32"));
}
