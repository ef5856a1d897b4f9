//! The generator against tensors that PyTorch drew.

use candle_core::{DType, Device, Tensor};
use peft_core::torch_rng::{Arithmetic, TorchRng};
use std::collections::HashMap;

fn drawn_by_torch(capability: &str) -> HashMap<String, Tensor> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/rng");
    candle_core::safetensors::load(format!("{root}/rng_{capability}.safetensors"), &Device::Cpu).unwrap()
}

/// What the name of a recorded tensor says of how it was drawn.
fn draw(name: &str, tensor: &Tensor, arithmetic: Arithmetic) -> Vec<f32> {
    let seed = name.split("seed").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
    let (mut rng, n) = (TorchRng::new(seed).with_arithmetic(arithmetic), tensor.elem_count());
    match name.split(".seed").next().unwrap() {
        "normal.std1" => rng.normal(0.0, 1.0, n),
        "normal.P.u64.r2" => rng.normal(0.0, 1.0 / 2f64.sqrt(), n),
        "normal.P.u5.r3" => rng.normal(0.0, 1.0 / 3f64.sqrt(), n),
        "uniform01" => rng.uniform01(n),
        "uniform.pm0.02" => rng.uniform(-0.02, 0.02, n),
        "kaiming_a_sqrt5.3x32" => rng.kaiming_uniform(32, 5f64.sqrt(), n),
        other => panic!("unknown recording {other}"),
    }
}

fn every_recording_is_drawn_again(capability: &str, arithmetic: Arithmetic) {
    let mut compared = 0;
    for (name, tensor) in drawn_by_torch(capability) {
        if name.starts_with("u32") {
            continue;
        }
        let want: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let got = draw(&name, &tensor, arithmetic);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&want), "{capability} {name}");
        compared += want.len();
    }
    assert!(compared > 2000, "only {compared} values");
}

#[test]
fn values_of_torch_with_avx2_bit_for_bit() {
    every_recording_is_drawn_again("avx2", Arithmetic::Avx2);
}

#[test]
fn values_of_torch_without_avx2_bit_for_bit() {
    every_recording_is_drawn_again("default", Arithmetic::Scalar);
}

#[test]
fn raw_bits_past_the_second_twist() {
    for (name, tensor) in drawn_by_torch("avx2").into_iter().filter(|(name, _)| name.starts_with("u32")) {
        let seed = name.trim_start_matches("u32.seed").parse().unwrap();
        let want: Vec<i64> = tensor.to_dtype(DType::I64).unwrap().to_vec1().unwrap();
        let mut rng = TorchRng::new(seed);
        for (i, want) in want.into_iter().enumerate() {
            assert_eq!(i64::from(rng.next_u32() & 0x7FFF_FFFF), want, "{name}, draw {i}");
        }
    }
}

#[test]
fn the_cached_half_of_a_pair_survives_between_calls() {
    let mut together = TorchRng::new(7);
    let mut apart = TorchRng::new(7);
    let first = together.normal(0.0, 1.0, 3);
    let mut second = apart.normal(0.0, 1.0, 1);
    second.extend(apart.normal(0.0, 1.0, 2));
    assert_eq!(first, second);
}
