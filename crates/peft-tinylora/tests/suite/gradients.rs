//! Gradients of the trained vectors against finite differences in f64.

use crate::support::{Small, Tensors, build, fill, linear_site, own, plain, random, tensors, unseen};
use candle_core::{Tensor, Var};
use peft_core::{Mode, ModuleNames, ParamKey, PeftModel, TargetSpec};
use peft_tinylora::TinyLoraConfig;

fn loss(model: &PeftModel<Small>, ids: &Tensor) -> Tensor {
    model.base().forward(ids).unwrap().sqr().unwrap().sum_all().unwrap()
}

fn check(base: &Tensors, config: TinyLoraConfig) {
    let mut model = Small::model(base);
    model.add_adapter("default", config).unwrap();
    fill(&model.adapters()[0].params);
    let ids = &base["ids"];
    let grads = loss(&model, ids).backward().unwrap();
    model.audit_gradients(&grads).unwrap();
    for (name, var) in model.trainable() {
        let exact = grads.get(&var).unwrap().to_vec1::<f64>().unwrap();
        let original = var.to_vec1::<f64>().unwrap();
        for (i, exact) in exact.into_iter().enumerate() {
            let at = |step: f64| {
                let mut moved = original.clone();
                moved[i] += step;
                set(&var, moved);
                loss(&model, ids).to_scalar::<f64>().unwrap()
            };
            let step = 1e-5;
            let slope = (at(step) - at(-step)) / (2.0 * step);
            set(&var, original.clone());
            assert!((exact - slope).abs() <= 1e-6 * slope.abs().max(1.0), "{name}[{i}]: {exact} but {slope}");
            assert!(exact != 0.0, "{name}[{i}] has no effect");
        }
    }
}

fn set(var: &Var, values: Vec<f64>) {
    var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let base = tensors(own("f64").join("expected.safetensors"));
    let targets = TargetSpec::new(ModuleNames::list(["emb", "lin", "conv"]));
    for tying in [0.0, 0.4, 1.0] {
        check(&base, TinyLoraConfig::new(targets.clone()).with_r(3).with_u(5).with_weight_tying(tying));
    }
}

#[test]
fn gradients_pass_through_dropout() {
    let (x, output) = (random((4, 5), 6), random((4, 6), 5));
    let mut config = plain().with_u(3);
    config.tinylora_dropout = 0.4;
    let sites = [linear_site("a", random((6, 5), 4))];
    let (layers, params) = build(&config, &sites, None).unwrap();
    fill(&params);
    let (_, v) = params.trainable().next().unwrap();
    let loss = || {
        layers[0].reseed(5);
        layers[0].forward(unseen(&x), &x, output.clone(), Mode::Train).unwrap().sum_all().unwrap()
    };
    let exact = loss().backward().unwrap().get(v).unwrap().to_vec1::<f32>().unwrap();
    // The loss is linear in v, so a large step is as good as a small one.
    let original = v.to_vec1::<f32>().unwrap();
    let at_original = loss().to_scalar::<f32>().unwrap();
    for (i, exact) in exact.into_iter().enumerate() {
        let mut moved = original.clone();
        moved[i] += 1.0;
        v.set(&Tensor::from_vec(moved, v.shape(), v.device()).unwrap()).unwrap();
        let slope = loss().to_scalar::<f32>().unwrap() - at_original;
        assert!((exact - slope).abs() < 1e-4, "{i}: {exact} but {slope}");
    }
}

#[test]
fn frozen_tensors_get_no_gradient() {
    let sites = [linear_site("a", random((6, 5), 4))];
    let (layers, params) = build(&plain(), &sites, None).unwrap();
    fill(&params);
    let x = Var::from_tensor(&random((2, 5), 6)).unwrap();
    let y = layers[0].forward(unseen(&x), &x, random((2, 6), 5), Mode::Train).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    for name in ["tinylora_A", "tinylora_B", "tinylora_P"] {
        assert!(grads.get(params.tensor(&ParamKey::site("a", name)).unwrap()).is_none(), "{name}");
    }
    assert!(grads.get(&x).is_some());
    assert!(grads.get(params.trainable().next().unwrap().1).is_some());
    // No entry has the size of a frozen matrix either, which a transposed or reshaped view of one would bring in.
    let sizes = grads.get_ids().filter_map(|id| grads.get_id(*id)).map(Tensor::elem_count).collect::<Vec<_>>();
    assert!(!sizes.contains(&(64 * 2 * 2)), "{sizes:?}");
}
