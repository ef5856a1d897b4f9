//! Finite differences, on losses whose slopes are known.

use candle_core::{DType, Device, Result, Tensor, Var};
use peft_testkit::gradient::check;

fn var(values: &[f64]) -> (String, Var) {
    ("v".into(), Var::new(values, &Device::Cpu).unwrap())
}

fn many() -> (String, Var) {
    let values: Vec<f64> = (0..40).map(|i| f64::from(i) / 40.0).collect();
    var(&values)
}

#[test]
fn right_gradients_pass_and_variables_keep_their_values() {
    for dtype in [DType::F64, DType::F32] {
        let (name, v) = many();
        let v = Var::from_tensor(&v.to_dtype(dtype).unwrap()).unwrap();
        let before = v.copy().unwrap();
        check(&[(name, v.clone())], &|| v.to_dtype(DType::F64)?.sin()?.sqr()?.sum_all()).unwrap();
        peft_testkit::assert::assert_same("v", &v, &before);
    }
}

#[test]
fn wrong_and_missing_gradients_do_not() {
    let (name, v) = many();
    let vars = [(name, v.clone())];
    let doubled = || -> Result<Tensor> { v.sqr()?.sum_all()? + v.detach().sqr()?.sum_all()? };
    assert!(check(&vars, &doubled).unwrap_err().to_string().contains("the loss rises by"));
    let missing = || v.detach().sum_all();
    assert!(check(&vars, &missing).unwrap_err().to_string().contains("no gradient reached `v`"));
}

/// A single element between those that are moved one by one.
#[test]
fn no_element_escapes() {
    let (name, v) = many();
    let loss = || -> Result<Tensor> {
        let hidden = v.detach().narrow(0, 1, 1)?;
        v.sqr()?.sum_all()? + hidden.sum_all()?
    };
    assert!(check(&[(name, v.clone())], &loss).unwrap_err().to_string().contains("random direction"));
}
