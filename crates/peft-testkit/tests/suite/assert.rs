//! Comparisons that must notice, and say, what differs.

use candle_core::{Device, Tensor};
use peft_testkit::assert::{assert_close, check_close, check_relatively_close, check_same, largest};

fn t(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn equal_tensors_agree() {
    check_same("x", &t(&[1.0, 2.0]), &t(&[1.0, 2.0])).unwrap();
    check_close("x", &t(&[1.0, 2.5]), &t(&[1.0, 2.0]), 0.5).unwrap();
    check_relatively_close("x", &t(&[0.0, 100.0]), &t(&[1.0, 100.0]), 0.01).unwrap();
}

#[test]
fn a_mismatch_names_the_place_and_the_numbers() {
    let text = check_close("logits", &t(&[1.0, 2.0, 3.5]), &t(&[1.0, 2.2, 3.0]), 0.1).unwrap_err().to_string();
    assert_eq!(text, "logits: 2 of 3 elements are too far off, worst at 2: 3.5e0, expected 3e0 within 1.00e-1");
    let text = check_same("v", &t(&[1.0, 2.0]), &t(&[1.0, 3.0])).unwrap_err().to_string();
    assert_eq!(text, "v: 1 of 2 elements differ, first at 1: 2e0, expected 3e0");
}

#[test]
fn shapes_and_dtypes_must_agree() {
    assert!(check_close("x", &t(&[1.0]), &t(&[1.0, 1.0]), 9.0).is_err());
    assert!(check_same("x", &t(&[1.0]), &Tensor::new(&[1.0f64], &Device::Cpu).unwrap()).is_err());
    assert!(check_same("x", &t(&[0.0]), &t(&[-0.0])).is_err());
}

#[test]
fn nan_is_never_close() {
    assert!(check_close("x", &t(&[f32::NAN, 1.0]), &t(&[1.0, 1.0]), f64::INFINITY).is_err());
    assert!(check_close("x", &t(&[1.0]), &t(&[f32::NAN]), 1.0).is_err());
    assert!(largest(&t(&[1.0, f32::NAN, 2.0])).unwrap().is_nan());
    assert_eq!(largest(&t(&[1.0, -3.0, 2.0])).unwrap(), 3.0);
}

#[test]
#[should_panic(expected = "too far off")]
fn assertions_panic() {
    assert_close("x", &t(&[1.0]), &t(&[2.0]), 0.1);
}
