//! One layer: what `forward` computes is what the delta says.

use crate::support::{
    assert_close, assert_same, build, fill, largest_difference, linear_site, plain, random, site, unseen,
};
use candle_core::{DType, Device, Tensor};
use peft_core::{AdapterLayer, HostKind, Mode, Site, WeightLayout};
use proptest::prelude::*;
use std::sync::Arc;

fn layer(site: Site, r: usize, u: usize) -> Arc<dyn AdapterLayer> {
    let (layers, params) = build(&plain().with_r(r).with_u(u), &[site], None).unwrap();
    fill(&params);
    layers[0].clone()
}

/// `x W^T` in f64.
fn product(x: &Tensor, weight: &Tensor) -> Tensor {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    wide(x).broadcast_matmul(&wide(weight).t().unwrap()).unwrap()
}

proptest! {
    #![proptest_config(peft_testkit::strategy::config(48))]

    #[test]
    fn forward_is_the_changed_weight(
        (rows, cols) in (1usize..9, 1usize..9),
        (r, u) in (1usize..6, 1usize..20),
        (batch, seed) in (1usize..4, 0u64..1000),
        transposed: bool,
        wide: bool,
    ) {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        let weight = random((rows, cols), seed).to_dtype(dtype).unwrap();
        let (layout, stored) = match transposed {
            true => (WeightLayout::InOut, weight.t().unwrap().contiguous().unwrap()),
            false => (WeightLayout::OutIn, weight.clone()),
        };
        let layer = layer(site("a", HostKind::Linear, stored, layout), r, u);
        let delta = layer.delta_weight(&weight).unwrap();
        prop_assert_eq!(delta.dims(), weight.dims());
        prop_assert_eq!(delta.dtype(), dtype);
        let x = random((batch, 3, cols), seed + 1).to_dtype(dtype).unwrap();
        let base = product(&x, &weight).to_dtype(dtype).unwrap();
        let changed = product(&x, &(weight + &delta).unwrap());
        for mode in [Mode::Train, Mode::Infer] {
            let y = layer.forward(unseen(&x), &x, base.clone(), mode).unwrap();
            prop_assert_eq!(y.dtype(), dtype);
            let apart = largest_difference(&y, &changed);
            prop_assert!(apart < if wide { 1e-13 } else { 3e-6 }, "{} apart", apart);
        }
        let factors = layer.lora_factors().unwrap().unwrap();
        prop_assert_eq!(factors.scale, 1.0);
        let again = factors.b.matmul(&factors.a).unwrap();
        prop_assert!(largest_difference(&again, &delta) == 0.0);
    }
}

/// PEFT leaves Gemma's scale out of the change, so that merging such an adapter changes the model; here they agree.
#[test]
fn embeddings_scale_the_change_as_they_scale_the_weight() {
    for (scale, dtype) in [(1.0, DType::F32), (5.5, DType::F32), (-2.0, DType::F64)] {
        let weight = random((7, 4), 3).to_dtype(dtype).unwrap();
        let mut site = site("emb", HostKind::Embedding, weight.clone(), WeightLayout::OutIn);
        site.spec.embed_scale = scale;
        let layer = layer(site, 3, 8);
        let delta = layer.delta_weight(&weight).unwrap();
        let ids = Tensor::new(&[[0u32, 6, 3], [3, 3, 1]], &Device::Cpu).unwrap();
        let lookup = |w: &Tensor| {
            (w.index_select(&ids.flatten_all().unwrap(), 0).unwrap() * scale).unwrap().reshape((2, 3, 4)).unwrap()
        };
        let expected = lookup(&(&weight + &delta).unwrap());
        for mode in [Mode::Train, Mode::Infer] {
            let y = layer.forward(unseen(&ids), &ids, lookup(&weight), mode).unwrap();
            assert_close("rows", &y, &expected, if dtype == DType::F64 { 1e-14 } else { 2e-6 });
        }
        assert!(largest_difference(&lookup(&weight), &expected) > 0.01, "the test must be able to fail");
    }
}

#[test]
fn ids_outside_the_vocabulary_are_an_error() {
    let layer = layer(site("emb", HostKind::Embedding, random((7, 4), 3), WeightLayout::OutIn), 2, 3);
    let ids = Tensor::new(&[[7u32]], &Device::Cpu).unwrap();
    let error = layer.forward(unseen(&ids), &ids, random((1, 1, 4), 1), Mode::Infer).unwrap_err().to_string();
    assert!(error.contains('7'), "{error}");
}

/// The change is computed and added in f32; one rounding to the base's dtype ends it.
#[test]
fn a_16_bit_base_rounds_once() {
    for dtype in [DType::BF16, DType::F16] {
        let weight = random((6, 5), 4).to_dtype(dtype).unwrap();
        let layer = layer(site("a", HostKind::Linear, weight.clone(), WeightLayout::OutIn), 3, 7);
        let delta = layer.delta_weight(&weight).unwrap();
        assert_eq!(delta.dtype(), DType::F32);
        let x = random((4, 5), 9).to_dtype(dtype).unwrap();
        let base = product(&x, &weight).to_dtype(dtype).unwrap();
        let y = layer.forward(unseen(&x), &x, base.clone(), Mode::Train).unwrap();
        assert_eq!(y.dtype(), dtype);
        let exact = (base.to_dtype(DType::F64).unwrap() + product(&x, &delta)).unwrap();
        // f32 arithmetic may put a sum on the other side of a rounding edge, never further than that.
        let half = if dtype == DType::BF16 { 2f64.powi(-9) } else { 2f64.powi(-12) };
        let y = y.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let exact = exact.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (y, exact) in y.into_iter().zip(exact) {
            assert!((y - exact).abs() <= half * 2.0 * exact.abs().max(2f64.powi(-12)) + 1e-6, "{y} for {exact}");
        }
    }
}

#[test]
fn a_fresh_adapter_is_the_identity() {
    let weight = random((6, 5), 4);
    let (layers, _) = build(&plain(), &[site("a", HostKind::Linear, weight, WeightLayout::OutIn)], None).unwrap();
    let output = random((2, 6), 5);
    assert_same(
        "y",
        &layers[0].forward(unseen(&output), &random((2, 5), 6), output.clone(), Mode::Train).unwrap(),
        &output,
    );
}

#[test]
fn inference_builds_no_graph_and_sees_updates() {
    let (layers, params) =
        build(&plain(), &[site("a", HostKind::Linear, random((6, 5), 4), WeightLayout::OutIn)], None).unwrap();
    let (x, output) = (random((2, 5), 6), random((2, 6), 5));
    let before = layers[0].forward(unseen(&x), &x, output.clone(), Mode::Infer).unwrap();
    fill(&params);
    let after = layers[0].forward(unseen(&x), &x, output.clone(), Mode::Infer).unwrap();
    assert!(!after.track_op());
    assert!(largest_difference(&before, &after) > 1e-3);
    assert!(layers[0].forward(unseen(&x), &x, output, Mode::Train).unwrap().track_op());
}

/// One vector can serve modules of several dtypes: it has the widest, and each layer computes in its own.
#[test]
fn a_vector_is_shared_across_dtypes() {
    let dtypes = [DType::F32, DType::F64, DType::BF16];
    let sites: Vec<Site> =
        (0..3).map(|i| linear_site(&format!("l{i}"), random((6, 5), 4).to_dtype(dtypes[i]).unwrap())).collect();
    let (layers, params) = build(&plain().with_weight_tying(1.0), &sites, None).unwrap();
    fill(&params);
    let (_, v) = params.trainable().next().unwrap();
    assert_eq!((params.trainable().count(), v.dtype()), (1, DType::F64));
    for (layer, dtype) in layers.iter().zip(dtypes) {
        let (x, output) = (random((2, 5), 6).to_dtype(dtype).unwrap(), random((2, 6), 5).to_dtype(dtype).unwrap());
        let y = layer.forward(unseen(&x), &x, output, Mode::Train).unwrap();
        assert_eq!(y.dtype(), dtype);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(v).unwrap().dtype(), DType::F64);
    }
}
