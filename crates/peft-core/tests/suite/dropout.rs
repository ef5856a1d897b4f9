//! Dropout whose masks come from a seed.

use crate::support::bits;
use candle_core::{DType, Device, Tensor, Var};
use peft_core::{Dropout, Mode};

fn ones(n: usize) -> Tensor {
    Tensor::ones(n, DType::F32, &Device::Cpu).unwrap()
}

fn mask(dropout: &Dropout, n: usize) -> Vec<f32> {
    dropout.forward(&ones(n), Mode::Train).unwrap().to_vec1().unwrap()
}

#[test]
fn masks_are_repeated_after_reseeding_and_differ_otherwise() {
    let dropout = Dropout::new(0.5, 3);
    dropout.reseed(7);
    let (first, second) = (mask(&dropout, 64), mask(&dropout, 64));
    assert_ne!(first, second);
    dropout.reseed(7);
    assert_eq!((mask(&dropout, 64), mask(&dropout, 64)), (first.clone(), second.clone()));
    // The second mask of one seed is not the first of the next.
    dropout.reseed(8);
    let other = mask(&dropout, 64);
    assert_ne!(other, first);
    assert_ne!(other, second);
    let elsewhere = Dropout::new(0.5, 4);
    elsewhere.reseed(7);
    assert_ne!(mask(&elsewhere, 64), first);
}

#[test]
fn kept_elements_make_up_for_dropped_ones() {
    let dropout = Dropout::new(0.25, 0);
    let mask = mask(&dropout, 40_000);
    assert!(mask.iter().all(|v| *v == 0.0 || (*v - 4.0 / 3.0).abs() < 1e-6));
    let dropped = mask.iter().filter(|v| **v == 0.0).count() as f64 / 40_000.0;
    // Five standard deviations of a fair draw.
    assert!((dropped - 0.25).abs() < 5.0 * (0.25 * 0.75 / 40_000f64).sqrt(), "{dropped}");
}

#[test]
fn the_ends_of_the_scale() {
    assert_eq!(mask(&Dropout::new(0.0, 0), 9), [1.0; 9]);
    assert_eq!(mask(&Dropout::new(1.0, 0), 9), [0.0; 9]);
    let dropout = Dropout::new(0.9, 0);
    assert_eq!(bits(&dropout.forward(&ones(9), Mode::Infer).unwrap()), bits(&ones(9)));
}

#[test]
fn inference_does_not_use_up_masks() {
    let dropout = Dropout::new(0.5, 0);
    dropout.reseed(1);
    let expected = mask(&dropout, 32);
    dropout.reseed(1);
    dropout.forward(&ones(32), Mode::Infer).unwrap();
    assert_eq!(mask(&dropout, 32), expected);
}

#[test]
fn gradients_pass_where_elements_do() {
    let dropout = Dropout::new(0.5, 0);
    dropout.reseed(2);
    let kept = mask(&dropout, 32);
    dropout.reseed(2);
    let x = Var::from_tensor(&ones(32)).unwrap();
    let y = dropout.forward(&x, Mode::Train).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), kept);
}

#[test]
fn shapes_and_dtypes_stay() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let x = Tensor::ones((2, 3, 4), dtype, &Device::Cpu).unwrap();
        let y = Dropout::new(0.5, 0).forward(&x, Mode::Train).unwrap();
        assert_eq!((y.dtype(), y.dims()), (dtype, x.dims()));
    }
}
