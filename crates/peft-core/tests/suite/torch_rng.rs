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

/// Draws of PyTorch 2.11 from one generator with seed 7: 3, 16 and 2 normal numbers, 2 uniform ones, 1 normal number.
#[test]
fn the_cached_half_survives_vectorised_draws() {
    let mut rng = TorchRng::new(7);
    assert_eq!(rng.normal(0.0, 1.0, 3), [-0.1467951, 0.7861413, 0.94682163]);
    assert_eq!(rng.normal(0.0, 1.0, 16)[..4], [-0.17643793, 1.7501724, 1.9300169, 0.9861118]);
    assert_eq!(rng.normal(0.0, 1.0, 2), [-1.114344, 0.1373241]);
    assert_eq!(rng.uniform01(2), [0.7652737, 0.11322057]);
    assert_eq!(rng.normal(0.0, 1.0, 1), [0.24054612]);
}

/// `torch.normal(-3.7, 0.3, ...)` of 17 and then 4 elements, and `uniform_(-1.3, 0.7)`, PyTorch 2.11, seed 7.
#[test]
fn mean_deviation_and_limits_are_applied_as_torch_does() {
    let avx2 = [
        -3.9460404, -3.79737, -3.1220896, -3.7990036, -3.6404665, -3.4653783, -3.3882678, -3.9173534, -3.9546726,
        -3.7646024, -4.2447186, -3.8035727, -4.3184433, -3.4977698, -4.097004, -4.1079307, -3.9600105,
    ];
    let mut scalar = avx2;
    (scalar[2], scalar[4], scalar[10]) = (-3.1220899, -3.640467, -4.244719);
    for (arithmetic, want) in [(Arithmetic::Avx2, avx2), (Arithmetic::Scalar, scalar)] {
        let mut rng = TorchRng::new(7).with_arithmetic(arithmetic);
        assert_eq!(rng.normal(-3.7, 0.3, 17), want);
        assert_eq!(rng.normal(-3.7, 0.3, 4), [-4.1247244, -3.8456588, -3.6479073, -4.081981]);
        let want =
            [-0.23015487, -0.9023936, 0.018423438, 0.013780594, -0.8344768, -0.44987714, -0.8858279, -0.040527225];
        assert_eq!(TorchRng::new(7).with_arithmetic(arithmetic).uniform(-1.3, 0.7, 8), want);
    }
}

/// `torch.rand(3)` after `manual_seed(-1)`, PyTorch 2.11.
#[test]
fn seeds_are_taken_modulo_two_to_the_32() {
    assert_eq!(TorchRng::new(-1i64 as u64).uniform01(3), [0.9937994, 0.57130635, 0.57000804]);
    assert_eq!(TorchRng::new(u64::from(u32::MAX)).uniform01(3), [0.9937994, 0.57130635, 0.57000804]);
}

/// Layer `i` of an adapter draws its projection from `projection_seed + i`.
#[test]
fn projections_that_peft_wrote() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    // r is 2, 2, 3 and 16; u r r is a multiple of the block of 16 and not, the model has an embedding and not.
    for case in ["tinylora_default", "tinylora_embedding", "tinylora_odd_groups", "tinylora_rank_clamped"] {
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(root.join(case).join(name)).unwrap()).unwrap()
        };
        let stored = candle_core::safetensors::load(root.join(case).join("adapter_model.safetensors"), &Device::Cpu);
        let stored = stored.unwrap();
        let seed = json("adapter_config.json")["projection_seed"].as_u64().unwrap();
        let modules: Vec<String> = serde_json::from_value(json("case.json")["modules"].clone()).unwrap();
        assert_eq!(modules.len(), stored.keys().filter(|key| key.ends_with(".tinylora_P")).count());
        for (seed, module) in (seed..).zip(modules) {
            let projection = &stored[&format!("base_model.model.{module}.tinylora_P")];
            let (u, r, _) = projection.dims3().unwrap();
            let want: Vec<f32> = projection.flatten_all().unwrap().to_vec1().unwrap();
            let got = TorchRng::new(seed).normal(0.0, 1.0 / (r as f64).sqrt(), u * r * r);
            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{case} {module}");
        }
    }
}
