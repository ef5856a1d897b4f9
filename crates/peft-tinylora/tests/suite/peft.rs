//! Small adapters of dtypes and hosts that the shared cases lack, against PEFT's own numbers.

use crate::support::{
    Small, Tensors, assert_close, assert_same, config, largest_difference, own, registry, saved, tensors,
};
use candle_core::DType;
use peft_core::{ModuleNames, PeftModel, TargetSpec};
use peft_tinylora::{TinyLoraConfig, TinyLoraInit};

struct Tolerance {
    output: f64,
    delta: f64,
    /// Relative to the largest.
    grad: f64,
}

fn check(name: &str, tolerance: Tolerance) {
    let (dir, expected) = (own(name), tensors(own(name).join("expected.safetensors")));
    let mut model = Small::model(&expected);
    model.load_adapter("default", &dir, &registry()).unwrap();
    for (path, _) in model.adapters()[0].sites.clone() {
        let delta = model.delta_weight("default", &path).unwrap();
        assert_close(&format!("{name}: delta of {path}"), &delta, &expected[&format!("delta.{path}")], tolerance.delta);
    }
    let inferred = model.base().forward(&expected["ids"]).unwrap();
    assert_eq!(inferred.dtype(), expected["y"].dtype());
    assert_close(&format!("{name}: output"), &inferred, &expected["y"], tolerance.output);

    model.train().unwrap();
    let y = model.base().forward(&expected["ids"]).unwrap().to_dtype(DType::F64).unwrap();
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (key, var) in model.trainable() {
        let group = key.rsplit('.').next().unwrap();
        let (grad, expected) = (grads.get(&var).unwrap(), &expected[&format!("grad.{group}")]);
        let largest = largest_difference(expected, &expected.zeros_like().unwrap());
        assert_close(&format!("{name}: {key}"), grad, expected, tolerance.grad * largest);
    }
    written_again(&model, &tensors(dir.join("adapter_model.safetensors")), &expected);
}

/// Names, shapes, dtypes and bits of a checkpoint that is saved again.
fn written_again(model: &PeftModel<Small>, read: &Tensors, expected: &Tensors) {
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path()).unwrap();
    let written = tensors(dir.path().join("adapter_model.safetensors"));
    assert_eq!(written.keys().collect::<Vec<_>>(), read.keys().collect::<Vec<_>>());
    for (name, tensor) in read {
        assert_same(name, &written[name], tensor);
    }
    let mut again = Small::model(expected);
    again.load_adapter("default", dir.path(), &registry()).unwrap();
    let forward = |model: &PeftModel<Small>| model.base().forward(&expected["ids"]).unwrap();
    assert_same("output", &forward(&again), &forward(model));
}

#[test]
fn f64_with_an_embedding_and_a_conv1d() {
    check("f64", Tolerance { output: 1e-13, delta: 1e-14, grad: 1e-13 });
}

#[test]
fn f64_without_projections() {
    check("f64_no_projection", Tolerance { output: 1e-13, delta: 1e-14, grad: 1e-13 });
}

/// Outputs are of the order of 1 and rounded twice; gradients come back through four more roundings.
#[test]
fn bf16() {
    check("bf16", Tolerance { output: 2f64.powi(-7), delta: 1e-6, grad: 2f64.powi(-6) });
}

#[test]
fn bf16_without_projections() {
    check("bf16_no_projection", Tolerance { output: 2f64.powi(-7), delta: 1e-6, grad: 2f64.powi(-6) });
}

#[test]
fn f16() {
    check("f16", Tolerance { output: 2f64.powi(-10), delta: 1e-6, grad: 2f64.powi(-9) });
}

#[test]
fn uniform_vectors_are_those_of_pytorch() {
    let base = tensors(own("f64").join("expected.safetensors"));
    let base: Tensors = base.into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap())).collect();
    let targets = TargetSpec::new(ModuleNames::list(["emb", "lin", "conv"]));
    let fresh = |init| {
        let mut config = TinyLoraConfig::new(targets.clone()).with_u(5).with_weight_tying(0.4).with_init_weights(init);
        config.init_v_bound = 0.3;
        let mut model = Small::model(&base).with_init_seed(7);
        saved(&model.add_adapter("default", config).unwrap().params)
    };
    let uniform = fresh(TinyLoraInit::Uniform);
    for (name, expected) in tensors(own("uniform.safetensors")) {
        assert_same(&name, &uniform[&name], &expected);
        assert_same(&name, &fresh(TinyLoraInit::Unspecified)[&name], &expected);
        assert_same(&name, &fresh(TinyLoraInit::Zeros)[&name], &expected.zeros_like().unwrap());
    }
}

#[test]
fn the_orientation_of_the_last_linear_layer_is_recorded() {
    let base = tensors(own("f64").join("expected.safetensors"));
    for (targets, transposed) in
        [(vec!["lin"], false), (vec!["emb", "lin", "conv"], true), (vec!["conv"], true), (vec!["emb"], false)]
    {
        let mut model = Small::model(&base);
        let adapter =
            model.add_adapter("default", TinyLoraConfig::new(TargetSpec::new(ModuleNames::list(targets)))).unwrap();
        assert_eq!(adapter.config.method.downcast_ref::<TinyLoraConfig>().unwrap().fan_in_fan_out, transposed);
    }
    assert!(config(&own("f64")).fan_in_fan_out);
}
