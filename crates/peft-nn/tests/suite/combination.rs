use candle_core::DType;
use peft_nn::combination;

use crate::support::{assert_close, check_gradients, check_sixteen_bit, error, random};

#[test]
fn gradients_reach_the_coefficients() {
    let p = random((5, 2, 3), 1);
    check_gradients(&[random(5, 2)], |v| combination(&v[0], &p));
}

#[test]
fn the_kernel_computes_the_same_as_in_f64() {
    let (v, p, grad) = (random(13, 1), random((13, 2, 2), 2), random((2, 2), 3));
    let of = |dtype: DType| {
        let own = |t: &candle_core::Tensor| t.to_dtype(dtype).unwrap();
        let v = candle_core::Var::from_tensor(&own(&v)).unwrap();
        let r = combination(&v, &own(&p)).unwrap();
        let grads = (&r * own(&grad)).unwrap().sum_all().unwrap().backward().unwrap();
        (r, grads.get(&v).unwrap().clone())
    };
    let ((r, dv), (exact, exact_dv)) = (of(DType::F32), of(DType::F64));
    assert_close(&r, &exact, 1e-6);
    assert_close(&dv, &exact_dv, 1e-6);
    check_sixteen_bit(&[v], |v| combination(&v[0], &p.to_dtype(v[0].dtype())?));
}

#[test]
fn wrong_operands_are_errors() {
    let p = random((5, 2, 3), 1);
    assert!(error(combination(&random(4, 2), &p)).contains("coefficients have shape [4], expected [5]"));
    assert!(
        error(combination(&random(5, 2), &random((5, 2), 1))).contains("matrices are (u, rows, columns), got [5, 2]")
    );
    let half = p.to_dtype(DType::BF16).unwrap();
    assert!(error(combination(&random(5, 2), &half)).contains("matrices is bf16"));
}
