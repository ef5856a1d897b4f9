use candle_core::{DType, Tensor, Var};
use peft_nn::{add, div_frozen, gelu, gelu_new, mul_frozen, swiglu};
use proptest::prelude::*;

use crate::support::{
    assert_close, assert_same_bits, cases, check_gradients, check_sixteen_bit, elements, error, random,
};

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn gradients_and_values(rows in 1usize..4, width in 1usize..6, seed: u64) {
        let gate = (random((rows, width), seed) * 4.0).unwrap();
        let up = random((rows, width), seed ^ 1);
        check_gradients(&[gate.clone(), up.clone()], |v| swiglu(&v[0], &v[1]));
        check_gradients(std::slice::from_ref(&gate), |v| swiglu(&v[0], &up));
        check_gradients(std::slice::from_ref(&up), |v| swiglu(&gate, &v[0]));
        check_gradients(std::slice::from_ref(&gate), |v| gelu_new(&v[0]));
        check_gradients(std::slice::from_ref(&gate), |v| gelu(&v[0]));
        check_gradients(&[gate.clone(), up.clone()], |v| add(&v[0], &v[1]));
        check_gradients(std::slice::from_ref(&gate), |v| add(&v[0], &up));
        check_gradients(std::slice::from_ref(&up), |v| add(&gate, &v[0]));

        let (gate, up) = (gate.to_dtype(DType::F32).unwrap(), up.to_dtype(DType::F32).unwrap());
        assert_close(&swiglu(&gate, &up).unwrap(), &(gate.silu().unwrap() * &up).unwrap(), 1e-6);
        assert_close(&gelu_new(&gate).unwrap(), &gate.gelu().unwrap(), 1e-6);
        assert_close(&gelu(&gate).unwrap(), &gate.gelu_erf().unwrap(), 1e-6);
        assert_same_bits(&add(&gate, &up).unwrap(), &(gate + up).unwrap());
    }
}

#[test]
fn large_tensors_equal_candle() {
    let gate = random((70, 1000), 1).to_dtype(DType::F32).unwrap();
    let up = random((70, 1000), 2).to_dtype(DType::F32).unwrap();
    assert_close(&swiglu(&gate, &up).unwrap(), &(gate.silu().unwrap() * &up).unwrap(), 1e-6);
}

#[test]
fn the_same_tensor_twice() {
    check_gradients(&[random((2, 3), 1)], |v| swiglu(&v[0], &v[0]));
    check_gradients(&[random((2, 3), 1)], |v| add(&v[0], &v[0]));
}

#[test]
fn strided_inputs() {
    check_gradients(&[random((4, 3), 1), random((3, 4), 2)], |v| swiglu(&v[0].t()?, &v[1]));
    check_gradients(&[random((4, 3), 1)], |v| gelu_new(&v[0].t()?));
    check_gradients(&[random((4, 3), 1)], |v| gelu(&v[0].t()?));
    check_gradients(&[random((4, 3), 1), random((3, 4), 2)], |v| add(&v[0].t()?, &v[1]));
    // The halves of a fused projection.
    check_gradients(&[random((2, 6), 1)], |v| swiglu(&v[0].narrow(1, 0, 3)?, &v[0].narrow(1, 3, 3)?));
}

#[test]
fn sixteen_bit_types() {
    check_sixteen_bit(&[random((3, 20), 1), random((3, 20), 2)], |v| swiglu(&v[0], &v[1]));
    check_sixteen_bit(&[random((3, 20), 1), random((3, 20), 2)], |v| add(&v[0], &v[1]));
    check_sixteen_bit(&[random((3, 20), 1)], |v| gelu_new(&v[0]));
    check_sixteen_bit(&[random((3, 20), 1)], |v| gelu(&v[0]));
}

#[test]
fn extreme_inputs_stay_finite() {
    let x = Tensor::new(&[-1e4f32, -100.0, 100.0, 1e4], &candle_core::Device::Cpu).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let ones = x.ones_like().unwrap().detach();
    for output in [swiglu(&x, &ones).unwrap(), gelu_new(&x).unwrap(), gelu(&x).unwrap()] {
        let grads = output.sum_all().unwrap().backward().unwrap();
        assert_close(&output, &x.relu().unwrap(), 1e-6);
        assert_eq!(elements(grads.get(&x).unwrap()), [0.0, 0.0, 1.0, 1.0]);
    }
}

#[test]
fn multiplication_by_constants() {
    let factors = random((3, 4), 2);
    let tracked = Var::from_tensor(&factors).unwrap();
    check_gradients(&[random((3, 4), 1)], |v| mul_frozen(&v[0], &factors));
    check_gradients(&[random((4, 3), 1)], |v| mul_frozen(&v[0].t()?, &tracked));
    check_sixteen_bit(&[random((3, 4), 1)], |v| mul_frozen(&v[0], &factors.to_dtype(v[0].dtype())?));
    assert!(!mul_frozen(&factors, &factors).unwrap().track_op());
}

#[test]
fn division_by_constants() {
    let divisors = (random((3, 4), 2).sqr().unwrap() + 0.5).unwrap();
    let tracked = Var::from_tensor(&divisors).unwrap();
    check_gradients(&[random((3, 4), 1)], |v| div_frozen(&v[0], &divisors));
    check_gradients(&[random((4, 3), 1)], |v| div_frozen(&v[0].t()?, &tracked));
    check_sixteen_bit(&[random((3, 4), 1)], |v| div_frozen(&v[0], &divisors.to_dtype(v[0].dtype())?));
    let equal = div_frozen(&divisors, &divisors).unwrap();
    assert!(!equal.track_op() && elements(&equal).iter().all(|ratio| *ratio == 1.0));
    assert!(error(div_frozen(&divisors, &random(3, 1))).contains("divisors tensor has shape [3], expected [3, 4]"));
}

#[test]
fn wrong_operands_are_errors() {
    let x = random((2, 3), 1);
    assert!(error(swiglu(&x, &random((3, 2), 1))).contains("has shape [3, 2], expected [2, 3]"));
    assert!(error(swiglu(&x, &x.to_dtype(DType::F32).unwrap())).contains("is f32 but the input is f64"));
    assert!(error(mul_frozen(&x, &random(3, 1))).contains("factors tensor has shape [3], expected [2, 3]"));
    assert!(error(mul_frozen(&x, &x.to_dtype(DType::F32).unwrap())).contains("is f32 but the input is f64"));
    assert!(error(gelu_new(&x.to_dtype(DType::U32).unwrap())).contains("u32"));
    assert!(error(gelu(&x.to_dtype(DType::U32).unwrap())).contains("u32"));
    assert!(error(add(&x, &random((3, 2), 1))).contains("second operand has shape [3, 2], expected [2, 3]"));
    assert!(error(add(&x, &x.to_dtype(DType::F32).unwrap())).contains("second operand is f32 but the input is f64"));
}
