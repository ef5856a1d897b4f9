//! The example's method, from the file that `cargo run --example custom_method` runs, and the guide that quotes it.

#[path = "../../examples/custom_method.rs"]
#[allow(dead_code, reason = "`main` is the example's")]
mod example;

use candle_core::DType;
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::{ModuleNames, PeftModel, Registry, TargetSpec, lora::to_lora};
use example::SvfConfig;
use peft_testkit::assert::assert_relatively_close;
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::{TinySpec, noise};
use proptest::prelude::*;
use std::{fs, path::Path};

proptest! {
    #![proptest_config(strategy::config(32))]

    #[test]
    fn it_keeps_the_laws(spec in strategy::spec(), targets in strategy::linear_targets(), r in 1usize..6, seed in 0u64..99) {
        Case::new(SvfConfig { r, targets }).unwrap().on(spec).with_seed(seed).check()?;
    }
}

/// An adapter on the linear layers of a tiny model, as if trained.
fn trained(r: usize) -> PeftModel<peft_testkit::tiny::TinyModel> {
    let mut model = PeftModel::new(TinySpec::of(DType::F64).build().unwrap());
    model.add_adapter("default", SvfConfig { r, targets: TargetSpec::new(ModuleNames::all_linear()) }).unwrap();
    for var in model.vars() {
        var.set(&noise(var.shape(), DType::F64, 3).unwrap()).unwrap();
    }
    model.eval().unwrap();
    model
}

/// What its name says: with every direction kept, numbers of -1 take the weight away.
#[test]
fn minus_one_takes_a_direction_out_of_the_weight() {
    let model = trained(8);
    for var in model.vars() {
        var.set(&(var.ones_like().unwrap() * -1.0).unwrap()).unwrap();
    }
    let path = "model.layers.0.mlp.up_proj";
    let delta = model.delta_weight("default", path).unwrap();
    let site = candle_peft::core::plan(model.base(), &model.adapter("default").unwrap().config.method).unwrap();
    let weight = site.iter().find(|site| site.path == path).unwrap().base.stored().unwrap();
    // The decomposition is made in f32.
    assert_relatively_close("the delta", &delta.neg().unwrap(), weight, 1e-6);
}

#[test]
fn it_leaves_as_a_lora_without_its_base() {
    let model = trained(3);
    let mut registry = Registry::new();
    registry.register::<SvfConfig>().unwrap().register::<candle_peft::lora::LoraConfig>().unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter("default", folder.path()).unwrap();
    let lora = to_lora(&DetachedAdapter::open(folder.path(), &registry).unwrap()).unwrap();
    let mut other = PeftModel::new(TinySpec::of(DType::F64).build().unwrap());
    other.add_from_source("lora", lora.config, &lora.tensors).unwrap();
    let ids = TinySpec::default().ids().unwrap();
    let logits = |model: &PeftModel<peft_testkit::tiny::TinyModel>| model.base().forward(&ids).unwrap();
    // Opened without its base, an adapter is kept in f32.
    assert_relatively_close("the logits", &logits(&other), &logits(&model), 1e-6);
}

#[test]
fn bad_configs_are_refused() {
    let mut registry = Registry::new();
    registry.register::<SvfConfig>().unwrap();
    let error = registry.parse(r#"{"peft_type": "SVF", "r": 0}"#).unwrap_err().to_string();
    assert!(error.contains("`r` is 0"), "{error}");
}

/// Each block of Rust in the guide is preceded by a comment that names the file it is taken from, line by line.
#[test]
fn the_guide_quotes_code_that_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/guide/write-a-method.md")).unwrap();
    let lines = |text: &str| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    let guide = lines(&guide);
    let mut blocks = 0;
    for start in (0..guide.len()).filter(|i| guide[*i].starts_with("```rust")) {
        let file = guide[start - 1].strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->"));
        let file = file.unwrap_or_else(|| panic!("line {start} of the guide names no file for the block after it"));
        let length = guide[start + 1..].iter().position(|line| line == "```").unwrap();
        let block = &guide[start + 1..][..length];
        let source = lines(&fs::read_to_string(root.join(file)).unwrap());
        assert!(
            source.windows(length).any(|window| window == block),
            "{file} has no such lines:\n{}",
            block.join("\n")
        );
        blocks += 1;
    }
    assert!(blocks >= 6, "the guide has only {blocks} blocks of code");
}
