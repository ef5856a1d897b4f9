//! Several adapters on one model, which PEFT lets share the projections of the first.

use crate::support::{Tensors, model, output, saved, stirred};
use candle_core::Tensor;
use peft_testkit::assert::{assert_close, assert_same, largest};
use peft_vera::VeraConfig;

/// An adapter alone on a model of its own: its checkpoint and what it computes.
fn alone(config: &VeraConfig) -> (Tensors, Tensor) {
    let mut model = model();
    model.add_adapter("only", config.clone()).unwrap();
    model.eval().unwrap();
    (saved(&model, "only"), output(&model))
}

/// What PEFT refuses or breaks for a second adapter: a wider one, a narrower one, other layers, lower and higher ranks, another key,
/// projections saved or not.
fn seconds() -> Vec<VeraConfig> {
    vec![
        stirred(&["up", "down"]),
        stirred(&["up"]),
        stirred(&["down"]).with_r(2),
        stirred(&["down"]).with_r(9),
        stirred(&["up"]).with_projection_prng_key(4),
        stirred(&["up"]).with_save_projection(false),
    ]
}

#[test]
fn a_second_adapter_is_what_it_is_alone() {
    for first in [stirred(&["up"]), stirred(&["up", "down"])] {
        for second in seconds() {
            let mut model = model();
            model.add_adapter("first", first.clone()).unwrap();
            model.add_adapter("second", second.clone()).unwrap();
            model.eval().unwrap();
            for (name, config) in [("first", &first), ("second", &second)] {
                model.activate(&[name]).unwrap();
                let (tensors, expected) = alone(config);
                assert_same(&format!("{name} beside another: {second:?}"), &output(&model), &expected);
                let saved = saved(&model, name);
                assert_eq!(saved.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
                for (key, tensor) in &tensors {
                    assert_same(key, &saved[key], tensor);
                }
            }
        }
    }
}

#[test]
fn deltas_of_active_adapters_add_up() {
    let mut model = model();
    model.add_adapter("first", stirred(&["down"])).unwrap();
    model.add_adapter("second", stirred(&["down"]).with_r(3).with_projection_prng_key(8)).unwrap();
    model.eval().unwrap();
    model.disable().unwrap();
    let plain = output(&model);
    model.enable().unwrap();
    let mut change = |names: &[&str]| {
        model.activate(names).unwrap();
        (output(&model) - &plain).unwrap()
    };
    let sum = (change(&["first"]) + change(&["second"])).unwrap();
    let both = change(&["first", "second"]);
    assert!(largest(&both).unwrap() > 0.1);
    assert_close("both", &both, &sum, 1e-5);
}
