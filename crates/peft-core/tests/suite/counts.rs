//! How many numbers a model has, and how that is printed.

use crate::methods::{Bottleneck, Scale};
use crate::support::{named, on, tiny, with_bottleneck};
use candle_core::{DType, Device, Tensor};
use peft_core::nn::Linear;
use peft_core::{ModuleNames, PeftModel, TargetSpec};
use peft_testkit::tiny::TinySpec;

/// Embedding and head 11 x 6 each; two blocks with a norm of 6, weights of 48 each, biases of 8 and 6; a norm of 6 + 6.
const BASE: usize = 2 * 66 + 2 * (6 + 48 + 8 + 48 + 6) + 12;

#[test]
fn the_base_counts_weights_and_biases() {
    let counts = tiny().param_counts().unwrap();
    assert_eq!((counts.trainable, counts.total), (0, BASE));
}

#[test]
fn trainable_numbers_come_on_top_and_fixed_ones_do_not() {
    let counts = with_bottleneck(named(&["up_proj"])).param_counts().unwrap();
    assert_eq!((counts.trainable, counts.total), (2 * 8 * 2, BASE + 2 * 8 * 2));
    let mut shared = tiny();
    let adapter = shared.add_adapter("default", Scale::on(TargetSpec::new(ModuleNames::all_linear()))).unwrap();
    assert_eq!(adapter.params.trainable_count(), 1);
    assert_eq!(shared.param_counts().unwrap().trainable, 1);
}

#[test]
fn only_active_adapters_count() {
    let mut model = with_bottleneck(named(&["up_proj"]));
    model.add_adapter("other", Bottleneck::on(named(&["lm_head"]))).unwrap();
    assert_eq!(model.param_counts().unwrap().trainable, 11 * 2);
    model.activate(&["default", "other"]).unwrap();
    assert_eq!(model.param_counts().unwrap().trainable, 11 * 2 + 32);
    model.disable().unwrap();
    assert_eq!(model.param_counts().unwrap().trainable, 0);
}

#[test]
fn whole_modules_count_twice_as_base_and_as_copy() {
    let mut model = tiny();
    let targets = TargetSpec { modules_to_save: Some(vec!["lm_head".into()]), ..named(&["up_proj"]) };
    model.add_adapter("default", Bottleneck::on(targets)).unwrap();
    let counts = model.param_counts().unwrap();
    assert_eq!((counts.trainable, counts.total), (66 + 32, BASE + 66 + 32));
}

#[test]
fn counts_are_printed_as_peft_prints_them() {
    let mut model = on(&TinySpec { vocab: 1000, hidden: 40, ..TinySpec::default() });
    model.add_adapter("default", Scale::on(named(&["up_proj"]))).unwrap();
    let total = 2 * 40_000 + 2 * (40 + 320 + 8 + 320 + 40) + 80 + 1;
    let printed = model.param_counts().unwrap().to_string();
    assert_eq!(
        printed,
        format!("trainable params: 1 || all params: 81,537 || trainable%: {:.4}", 100.0 / total as f64)
    );
    let weight = Tensor::zeros((1000, 1234), DType::F32, &Device::Cpu).unwrap();
    let printed = PeftModel::new(Linear::new(weight, None)).param_counts().unwrap().to_string();
    assert_eq!(printed, "trainable params: 0 || all params: 1,234,000 || trainable%: 0.0000");
}
