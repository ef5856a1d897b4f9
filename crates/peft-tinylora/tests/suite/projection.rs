//! Projections against those PEFT drew, bit for bit.

use crate::support::{GOLDEN, Golden, assert_same, build, linear_site, plain, random, shared, tensors};
use candle_core::DType;
use peft_core::Site;
use peft_core::{ParamKey, ParamStore};

fn projection<'a>(params: &'a ParamStore, path: &str) -> &'a candle_core::Tensor {
    params.tensor(&ParamKey::site(path, "tinylora_P")).unwrap()
}

#[test]
fn fresh_projections_are_those_of_pytorch() {
    let mut compared = 0;
    for name in GOLDEN {
        let golden = Golden::open(name);
        let (_, params) = build(&golden.config, &golden.sites, None).unwrap();
        for Site { path, .. } in &golden.sites {
            let stored = golden.checkpoint.get(&format!("base_model.model.{path}.tinylora_P"));
            let stored = stored.unwrap_or_else(|| &golden.expected[&format!("P.{path}")]);
            assert_same(&format!("{name} {path}"), projection(&params, path), stored);
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn raw_draws_of_the_generator_are_pytorchs() {
    let samples = tensors(shared("rng/rng_avx2.safetensors"));
    for seed in [0i64, 42, (1 << 32) + 43] {
        let mut config = plain().with_u(5).with_r(3);
        config.projection_seed = seed;
        let (_, params) = build(&config, &[linear_site("a", random((4, 6), 1))], None).unwrap();
        assert_same("P", projection(&params, "a"), &samples[&format!("normal.P.u5.r3.seed{seed}")]);
    }
}

#[test]
fn negative_seeds_wrap_around() {
    let sites = [linear_site("a", random((4, 6), 1)), linear_site("b", random((4, 6), 2))];
    let drawn = |seed| {
        let mut config = plain();
        config.projection_seed = seed;
        let (_, params) = build(&config, &sites, None).unwrap();
        (projection(&params, "a").clone(), projection(&params, "b").clone())
    };
    let ((a, b), (c, d)) = (drawn(-1), drawn((1 << 32) - 1));
    assert_same("first", &a, &c);
    assert_same("second, of seed 0", &b, &d);
    assert_same("second, of seed 0", &b, &drawn(0).0);
}

#[test]
fn projections_round_like_their_base() {
    let drawn = |dtype| {
        let weight = random((4, 6), 1).to_dtype(dtype).unwrap();
        let (_, params) = build(&plain(), &[linear_site("a", weight)], None).unwrap();
        projection(&params, "a").clone()
    };
    let exact = drawn(DType::F32);
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let storage = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        assert_same("P", &drawn(dtype), &exact.to_dtype(dtype).unwrap().to_dtype(storage).unwrap());
    }
}
