//! What a checkpoint must hold, and what is said when it does not.

use crate::support::{Tensors, model, on, output, refusal, saved, stirred, zeros};
use candle_core::Tensor;
use peft_core::ParamKey;
use peft_core::checkpoint::DetachedAdapter;
use peft_testkit::assert::assert_same;
use peft_vera::VeraConfig;

/// A config with the checkpoint of an adapter that does something.
fn checkpoint() -> (VeraConfig, Tensors, Tensor) {
    let config = stirred(&["up", "down"]);
    let mut model = model();
    model.add_adapter("default", config.clone()).unwrap();
    model.eval().unwrap();
    (config, saved(&model, "default"), output(&model))
}

#[test]
fn a_missing_projection_says_how_to_go_on() {
    let (config, tensors, expected) = checkpoint();
    for name in ["base_model.vera_A", "base_model.vera_B"] {
        let mut rest = tensors.clone();
        rest.remove(name).unwrap();
        let error = refusal(config.clone(), &rest);
        assert!(error.contains(name) && error.contains("`save_projection` is true"), "{error}");
        // The other one is in the file, and it is what would be drawn.
        let mut model = model();
        model.add_from_source("default", config.clone().with_save_projection(false), &rest).unwrap();
        assert_same(name, &output(&model), &expected);
        assert_eq!(saved(&model, "default").len(), 4, "what can be drawn is not saved");
    }
}

#[test]
fn projections_that_contradict_the_key_are_refused() {
    let (config, tensors, _) = checkpoint();
    let config = config.with_save_projection(false);
    model().add_from_source("default", config.clone(), &tensors).unwrap();
    let error = refusal(config.with_projection_prng_key(9), &tensors);
    assert!(error.contains("base_model.vera_A") && error.contains("`projection_prng_key` 9"), "{error}");
}

#[test]
fn projections_in_a_file_win_over_the_key() {
    let (config, mut tensors, expected) = checkpoint();
    let mut model = model();
    model.add_from_source("default", config.clone().with_projection_prng_key(9), &tensors).unwrap();
    assert_same("the output", &output(&model), &expected);
    tensors.insert("base_model.vera_A".into(), zeros((5, 10)));
    let mut model = crate::support::model();
    let plain = output(&model);
    model.add_from_source("default", config, &tensors).unwrap();
    assert_same("the output without A", &output(&model), &plain);
}

/// Such files are what PEFT writes for a second adapter beside a larger or smaller one; no model loads them alone there either.
#[test]
fn projections_of_another_adapters_size_are_refused() {
    let (config, tensors, _) = checkpoint();
    for (name, shape, wanted) in [
        ("base_model.vera_A", (5, 12), "[5, 10]"),
        ("base_model.vera_A", (5, 6), "[5, 10]"),
        ("base_model.vera_B", (12, 5), "[10, 5]"),
        ("base_model.vera_B", (10, 8), "[10, 5]"),
    ] {
        let mut other = tensors.clone();
        other.insert(name.into(), zeros(shape));
        let error = refusal(config.clone(), &other);
        assert!(error.contains(name) && error.contains(wanted), "{error}");
    }
}

#[test]
fn absurd_ranks_are_refused_before_anything_is_allocated() {
    for r in [usize::MAX, 1 << 40, (1 << 30) / 10 + 1] {
        let error = model().add_adapter("default", on(&["up", "down"]).with_r(r)).map(drop).unwrap_err().to_string();
        assert!(error.contains("`r`") && error.contains("10 x 10"), "{error}");
    }
}

#[test]
fn opening_without_the_base_says_what_to_do() {
    let (config, tensors, _) = checkpoint();
    let error = DetachedAdapter::from_source(config.into(), &tensors).unwrap_err().to_string();
    for part in ["VERA", "cannot be told from its tensors alone", "the base model must be given", "convert --base"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn narrow_layers_use_the_first_columns_and_rows() {
    let (_, tensors, _) = checkpoint();
    let mut model = model();
    model.add_from_source("default", stirred(&["up", "down"]), &tensors).unwrap();
    let (a, b) = (&tensors["base_model.vera_A"], &tensors["base_model.vera_B"]);
    assert_eq!((a.dims(), b.dims()), ([5, 10].as_slice(), [10, 5].as_slice()));
    for (path, rows, cols) in [("up", 10, 6), ("down", 4, 10)] {
        let vector = |name| tensors[&ParamKey::site(path, name).to_string()].unsqueeze(1).unwrap();
        let a = a.narrow(1, 0, cols).unwrap().broadcast_mul(&vector("vera_lambda_d")).unwrap();
        let b = b.narrow(0, 0, rows).unwrap().broadcast_mul(&vector("vera_lambda_b")).unwrap();
        assert_same(path, &model.delta_weight("default", path).unwrap(), &b.matmul(&a).unwrap());
    }
}
