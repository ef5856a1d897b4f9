//! The frozen factors: products against PEFT's, ranks, roundings.

use crate::support::{GOLDEN, Golden, Tensors, assert_close, build, linear_site, plain, random, saved, site};
use candle_core::{DType, Device, Tensor};
use peft_core::{HostKind, ParamKey, Site, WeightLayout};

fn product(tensors: &Tensors, path: &str) -> Tensor {
    let factor = |name| tensors[&format!("base_model.model.{path}.tinylora_{name}")].to_dtype(DType::F64).unwrap();
    factor("B").matmul(&factor("A")).unwrap()
}

/// Each of two f32 decompositions may turn the kept directions towards the first one that is dropped, by the rounding error over the
/// gap between their singular values, which moves the product by the smallest singular value kept times that.
fn rounding_bound(site: &Site, r: usize) -> f64 {
    let (_, params) = build(&plain().with_r(usize::MAX).with_u(1), std::slice::from_ref(site), None).unwrap();
    let b = params.tensor(&ParamKey::site(&site.path, "tinylora_B")).unwrap();
    let s = b.sqr().unwrap().sum(0).unwrap().to_vec1::<f32>().unwrap();
    let kept = r.min(s.len());
    let gap = s[kept - 1] - s.get(kept).copied().unwrap_or(0.0);
    f64::from(2.0 * f32::EPSILON * s[0] * s[kept - 1] / gap).max(1e-5)
}

#[test]
fn products_are_those_of_peft() {
    for name in GOLDEN.into_iter().filter(|name| *name != "tinylora_bf16") {
        let golden = Golden::open(name);
        let (_, params) = build(&golden.config, &golden.sites, None).unwrap();
        let fresh = saved(&params);
        for site in &golden.sites {
            let what = format!("{name} {}", site.path);
            let bound = rounding_bound(site, golden.config.r);
            assert!(bound < 2e-4, "{what}: {bound:e}");
            assert_close(&what, &product(&fresh, &site.path), &product(&golden.checkpoint, &site.path), bound);
            for factor in ["A", "B"] {
                let key = format!("base_model.model.{}.tinylora_{factor}", site.path);
                assert_eq!(fresh[&key].dims(), golden.checkpoint[&key].dims(), "{key}");
            }
        }
    }
}

/// Signs of singular vectors are free; rounding is the same for both. A rounding edge may fall between two decompositions.
#[test]
fn a_16_bit_base_rounds_step_by_step_as_peft_does() {
    let golden = Golden::open("tinylora_bf16");
    let (_, params) = build(&golden.config, &golden.sites, None).unwrap();
    let fresh = saved(&params);
    let (mut equal, mut total) = (0, 0);
    for site in &golden.sites {
        for factor in ["A", "B"] {
            let key = format!("base_model.model.{}.tinylora_{factor}", site.path);
            let values = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (ours, theirs) in values(&fresh[&key]).into_iter().zip(values(&golden.checkpoint[&key])) {
                assert_eq!(ours.to_bits() & 0xFFFF, 0, "{key}: {ours} is not a bf16 number");
                assert!((ours - theirs).abs() <= theirs * 2f32.powi(-7), "{key}: {ours} and {theirs}");
                equal += usize::from(ours == theirs);
                total += 1;
            }
        }
    }
    assert!(equal * 100 >= total * 99, "{equal} of {total} are equal");
}

#[test]
fn the_product_of_full_rank_is_the_weight() {
    for dtype in [DType::F32, DType::F64] {
        for (layout, rows, cols) in
            [(WeightLayout::OutIn, 5, 7), (WeightLayout::OutIn, 7, 5), (WeightLayout::InOut, 6, 3)]
        {
            let weight = random((rows, cols), 3).to_dtype(dtype).unwrap();
            let site = site("a", HostKind::Linear, weight.clone(), layout);
            let (_, params) = build(&plain().with_r(100), &[site], None).unwrap();
            let tensors = saved(&params);
            assert_eq!(tensors["base_model.model.a.tinylora_A"].dtype(), dtype);
            let weight = layout.out_in(&weight).unwrap();
            assert_close("W", &product(&tensors, "a"), &weight, 1e-6);
        }
    }
}

#[test]
fn ranks_are_clamped_per_module() {
    let sites = [linear_site("wide", random((3, 9), 1)), linear_site("tall", random((8, 6), 2))];
    let (_, params) = build(&plain().with_r(5).with_u(4), &sites, None).unwrap();
    let tensors = saved(&params);
    let dims = |key: &str| tensors[&format!("base_model.model.{key}")].dims().to_vec();
    assert_eq!(dims("wide.tinylora_A"), [3, 9]);
    assert_eq!(dims("wide.tinylora_P"), [4, 3, 3]);
    assert_eq!(dims("tall.tinylora_B"), [8, 5]);
    assert_eq!(dims("tall.tinylora_P"), [4, 5, 5]);
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let weight = Tensor::new(&[[1f32, f32::NAN], [0., 1.]], &Device::Cpu).unwrap();
    let error = build(&plain(), &[linear_site("model.layers.3.q_proj", weight)], None).unwrap_err().to_string();
    assert!(error.contains("model.layers.3.q_proj") && error.contains("NaN"), "{error}");
}

#[test]
fn the_same_weights_give_the_same_bits() {
    let golden = Golden::open("tinylora_all_linear_tied");
    let tensors = || saved(&build(&golden.config, &golden.sites, None).unwrap().1);
    let (first, second) = (tensors(), tensors());
    for (name, tensor) in &first {
        crate::support::assert_same(name, tensor, &second[name]);
    }
}
