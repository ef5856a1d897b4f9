//! Dropout of the input features, in training alone.

use crate::support::{model, output, stirred};
use peft_testkit::assert::{assert_same, check_same};

#[test]
fn dropping_everything_leaves_the_base_in_training_and_the_adapter_at_inference() {
    let mut config = stirred(&["up", "down"]);
    let mut kept = model();
    kept.add_adapter("default", config.clone()).unwrap();
    config.vera_dropout = 1.0;
    let mut dropped = model();
    dropped.add_adapter("default", config).unwrap();
    assert_same("in training", &output(&dropped), &output(&model()));
    dropped.eval().unwrap();
    assert_same("at inference", &output(&dropped), &output(&kept));
}

#[test]
fn masks_follow_the_seed() {
    let mut config = stirred(&["up", "down"]);
    config.vera_dropout = 0.5;
    let mut model = model();
    model.add_adapter("default", config).unwrap();
    let seeded = |seed| {
        model.reseed(seed).unwrap();
        output(&model)
    };
    let first = seeded(1);
    assert_same("the same seed", &seeded(1), &first);
    assert!(check_same("another seed", &seeded(2), &first).is_err());
}
