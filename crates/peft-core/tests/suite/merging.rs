//! Folding adapters into weights, and out again.

use crate::methods::{Bottleneck, Scale, Stubborn};
use crate::support::{at, bits, logits, logits_of, named, on, pattern, saved, stir, tiny, weight, with_bottleneck};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use peft_core::Error;
use peft_testkit::assert::{assert_close, assert_same};
use peft_testkit::tiny::TinySpec;

const UP: &str = "model.layers.0.mlp.up_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn sixteen_bit_weights_are_summed_wide_and_rounded_once() {
    for dtype in [DType::BF16, DType::F16] {
        let mut model = on(&TinySpec::of(dtype));
        model.add_adapter("default", Bottleneck::on(named(&["up_proj", "down_proj"]))).unwrap();
        stir(&model, 1);
        for path in [UP, DOWN] {
            let (base, delta) = (floats(&weight(&model, path)), floats(&model.delta_weight("default", path).unwrap()));
            model.merge().unwrap();
            let merged = weight(&model, path);
            assert_eq!(merged.dtype(), dtype);
            let rounded = base.iter().zip(&delta).map(|(w, d)| match dtype {
                DType::BF16 => bf16::from_f32(w + d).to_f32(),
                _ => f16::from_f32(w + d).to_f32(),
            });
            assert_eq!(floats(&merged), rounded.collect::<Vec<_>>(), "{path}");
            model.unmerge().unwrap();
            assert_eq!(floats(&weight(&model, path)), base);
        }
    }
}

#[test]
fn deltas_come_in_the_layout_of_the_weight() {
    let model = with_bottleneck(named(&["up_proj", "down_proj", "embed_tokens"]));
    let tensors = saved(&model, "default");
    let product = |path: &str| {
        let part = |name: &str| &tensors[&format!("base_model.model.{path}.bottleneck_{name}")];
        part("B").matmul(part("A")).unwrap()
    };
    assert_same(UP, &model.delta_weight("default", UP).unwrap(), &product(UP));
    assert_same(DOWN, &model.delta_weight("default", DOWN).unwrap(), &product(DOWN).t().unwrap());
    assert_eq!(model.delta_weight("default", "model.embed_tokens").unwrap().dims(), [11, 6]);
    let error = model.delta_weight("default", "lm_head").unwrap_err().to_string();
    assert!(error.contains("`lm_head`") && error.contains(UP), "{error}");
    assert!(matches!(model.delta_weight("x", UP), Err(Error::UnknownAdapter { .. })));
}

#[test]
fn several_adapters_merge_to_what_they_compute_together() {
    let mut model = on(&TinySpec { bias: false, ..TinySpec::default() });
    model.add_adapter("sum", Bottleneck::on(pattern("all-linear"))).unwrap();
    stir(&model, 1);
    model.add_adapter("product", Scale::on(named(&["up_proj", "lm_head"]))).unwrap();
    stir(&model, 2);
    model.activate(&["sum", "product"]).unwrap();
    let (separate, delta) = (logits(&model), model.delta_weight("product", UP).unwrap());
    model.merge().unwrap();
    assert_close("merged", &logits(&model), &separate, 1e-4);
    assert_same("a delta is that of the unmerged weight", &model.delta_weight("product", UP).unwrap(), &delta);
    model.unmerge().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&separate));
}

#[test]
fn merged_weights_stand_still_while_parameters_move() {
    let mut model = with_bottleneck(named(&["up_proj"]));
    model.merge().unwrap();
    let merged = logits(&model);
    stir(&model, 9);
    assert_eq!(bits(&logits(&model)), bits(&merged));
    model.unmerge().unwrap();
    assert_ne!(bits(&logits(&model)), bits(&merged));
}

#[test]
fn what_is_not_active_is_not_merged() {
    let mut model = with_bottleneck(named(&["up_proj"]));
    model.activate(&[]).unwrap();
    model.merge().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
    model.activate(&["default"]).unwrap();
    model.unmerge().unwrap();
    assert_eq!(model.active().collect::<Vec<_>>(), ["default"]);
}

#[test]
fn a_merge_that_fails_half_way_is_taken_back() {
    let mut model = with_bottleneck(named(&["up_proj"]));
    model.add_adapter("stubborn", Stubborn { mergeable: 3, lacking: 0, targets: pattern("all-linear") }).unwrap();
    model.activate(&["default", "stubborn"]).unwrap();
    let before = logits(&model);
    let weights = [UP, DOWN].map(|path| bits(&weight(&model, path)));
    let error = model.merge().unwrap_err();
    let last = "model.layers.1.mlp.down_proj";
    assert_eq!(error.to_string(), format!("{last}: STUBBORN has no weight delta, so it cannot be merged"));
    assert_eq!([UP, DOWN].map(|path| bits(&weight(&model, path))), weights);
    assert_eq!(bits(&logits(&model)), bits(&before));
    model.activate(&["default"]).unwrap();
    model.merge().unwrap();
}

#[test]
fn numbers_that_are_not_finite_are_refused_on_request() {
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut model = with_bottleneck(named(&["up_proj", "down_proj"]));
        let (_, var) = model.trainable().into_iter().find(|(name, _)| name.contains("1.mlp.down_proj")).unwrap();
        let mut values: Vec<f32> = floats(var.as_tensor());
        values[3] = poison;
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        let base = bits(&weight(&model, UP));
        let error = model.safe_merge().unwrap_err().to_string();
        assert!(error.contains("adapter `default` would put NaN or infinity"), "{error}");
        assert!(error.contains("model.layers.1.mlp.down_proj"), "{error}");
        assert_eq!(bits(&weight(&model, UP)), base, "modules before the broken one are not merged either");
        model.merge().unwrap();
        assert!(floats(&weight(&model, "model.layers.1.mlp.down_proj")).iter().any(|v| !v.is_finite()));
        model.unmerge().unwrap();
        assert_eq!(bits(&weight(&model, UP)), base);
    }
}

#[test]
fn an_overflow_of_half_precision_is_not_finite() {
    let mut model = on(&TinySpec::of(DType::F16));
    model.add_adapter("default", Bottleneck::on(named(&["up_proj"]))).unwrap();
    for var in model.vars() {
        var.set(&(var.ones_like().unwrap() * 1e6).unwrap()).unwrap();
    }
    assert!(model.safe_merge().unwrap_err().to_string().contains("infinity"));
}

/// Numbers beyond f32 are finite in f64.
#[test]
fn large_numbers_of_double_precision_are_finite() {
    let mut model = on(&TinySpec::of(DType::F64));
    model.add_adapter("default", Bottleneck::on(named(&["up_proj"]))).unwrap();
    for var in model.vars() {
        var.set(&(var.ones_like().unwrap() * 1e60).unwrap()).unwrap();
    }
    model.safe_merge().unwrap();
}

#[test]
fn the_plain_model_comes_out_merged_or_as_it_was() {
    let targets = || named(&["up_proj", "down_proj", "lm_head"]);
    let adapted = logits(&with_bottleneck(targets()));
    let plain = with_bottleneck(targets()).merge_and_unload().unwrap();
    assert_close("merged", &logits_of(&plain), &adapted, 1e-5);
    assert!(at(&plain, UP, |host| host.slots().adapters().count() == 0 && !host.slots().is_merged()));
    let mut merged = with_bottleneck(targets());
    merged.merge().unwrap();
    assert_eq!(bits(&logits_of(&merged.merge_and_unload().unwrap())), bits(&logits_of(&plain)));
    let mut merged = with_bottleneck(targets());
    merged.merge().unwrap();
    for model in [merged, with_bottleneck(targets())] {
        assert_eq!(bits(&logits_of(&model.unload().unwrap())), bits(&logits(&tiny())));
    }
}

#[test]
fn a_checkpoint_does_not_depend_on_merging() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = with_bottleneck(named(&["embed_tokens", "up_proj"]));
    let save = |model: &peft_core::PeftModel<_>, name: &str| {
        model.save_adapter("default", folder.path().join(name)).unwrap();
        std::fs::read(folder.path().join(name).join(peft_core::checkpoint::WEIGHTS_FILE)).unwrap()
    };
    let before = save(&model, "before");
    model.merge().unwrap();
    assert_eq!(save(&model, "merged"), before);
}

#[test]
fn unmerging_what_is_not_merged_does_nothing() {
    let mut model = with_bottleneck(named(&["up_proj"]));
    let before = logits(&model);
    model.unmerge().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&before));
}
