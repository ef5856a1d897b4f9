//! A method from outside registers, trains, saves, loads and merges, and keeps the laws.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, SGD};
use outside_method::Scale;
use peft_core::{ModuleNames, PeftModel, Registry, TargetSpec};
use peft_testkit::conformance::Case;
use peft_testkit::tiny::{TinyModel, TinySpec};

fn method() -> Scale {
    Scale { targets: TargetSpec::new(ModuleNames::all_linear()) }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<Scale>().unwrap();
    registry
}

fn base() -> PeftModel<TinyModel> {
    PeftModel::new(TinySpec::default().build().unwrap())
}

fn logits(model: &PeftModel<TinyModel>) -> Tensor {
    model.base().forward(&TinySpec::default().ids().unwrap()).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn it_trains_saves_loads_and_merges() {
    let mut model = base();
    model.add_adapter("mine", method()).unwrap();
    let before = logits(&model).detach();
    let target = Tensor::ones(before.shape(), DType::F32, &Device::Cpu).unwrap();
    let mut optimizer = SGD::new(model.vars(), 0.05).unwrap();
    let mut losses = vec![];
    for _ in 0..20 {
        let loss = (logits(&model) - &target).unwrap().sqr().unwrap().mean_all().unwrap();
        losses.push(loss.to_scalar::<f32>().unwrap());
        let grads = loss.backward().unwrap();
        model.audit_gradients(&grads).unwrap();
        optimizer.step(&grads).unwrap();
    }
    assert!(losses[19] < 0.95 * losses[0], "{losses:?}");

    model.eval().unwrap();
    let trained = logits(&model);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("mine", dir.path()).unwrap();
    let mut again = base();
    again.load_adapter("mine", dir.path(), &registry()).unwrap();
    assert_eq!(difference(&logits(&again), &trained), 0.0);

    again.merge().unwrap();
    assert!(difference(&logits(&again), &trained) < 1e-5);
    again.unmerge().unwrap();
    assert_eq!(difference(&logits(&again), &trained), 0.0);
}

#[test]
fn it_keeps_the_laws() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        Case::new(method()).unwrap().on(TinySpec::of(dtype)).check().unwrap();
    }
}

#[test]
fn without_it_the_error_lists_what_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = base();
    model.add_adapter("mine", method()).unwrap();
    model.save_adapter("mine", dir.path()).unwrap();
    let error = base().load_adapter("mine", dir.path(), &Registry::new()).unwrap_err().to_string();
    assert!(error.contains("unknown adapter method `OUTSIDE_SCALE`"), "{error}");
}
