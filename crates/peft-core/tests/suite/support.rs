//! Models with adapters, and what tests ask of them.

use crate::methods::Bottleneck;
use candle_core::{DType, Tensor};
use peft_core::{Adaptable, AdapterConfig, Host, ModuleNames, PeftModel, TargetSpec, Walk};
use peft_testkit::tiny::{TinyModel, TinySpec, noise};
use std::collections::BTreeMap;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Targets by a list of names.
pub(crate) fn named(names: &[&str]) -> TargetSpec {
    TargetSpec::new(ModuleNames::list(names.iter().copied()))
}

/// Targets by a regular expression or `all-linear`.
pub(crate) fn pattern(pattern: &str) -> TargetSpec {
    TargetSpec::new(ModuleNames::Pattern(pattern.into()))
}

/// The default tiny model.
pub(crate) fn tiny() -> PeftModel<TinyModel> {
    on(&TinySpec::default())
}

pub(crate) fn on(spec: &TinySpec) -> PeftModel<TinyModel> {
    PeftModel::new(spec.build().unwrap())
}

/// The default tiny model with a trained adapter called `default`.
pub(crate) fn with_adapter(config: impl Into<AdapterConfig>) -> PeftModel<TinyModel> {
    let mut model = tiny();
    model.add_adapter("default", config).unwrap();
    stir(&model, 3);
    model
}

/// The default tiny model with a trained bottleneck on these modules.
pub(crate) fn with_bottleneck(targets: TargetSpec) -> PeftModel<TinyModel> {
    with_adapter(Bottleneck::on(targets))
}

/// Moves every trainable number of the active adapters.
pub(crate) fn stir(model: &PeftModel<TinyModel>, seed: u64) {
    for (i, var) in model.vars().into_iter().enumerate() {
        let change = noise(var.shape(), var.dtype(), 100 * seed + i as u64).unwrap();
        var.set(&(var.as_tensor() + change).unwrap()).unwrap();
    }
}

/// Logits of the default tiny model.
pub(crate) fn logits(model: &PeftModel<TinyModel>) -> Tensor {
    logits_of(model.base())
}

pub(crate) fn logits_of(model: &TinyModel) -> Tensor {
    model.forward(&TinySpec::default().ids().unwrap()).unwrap().detach()
}

/// The numbers of a tensor as bits, for exact comparison.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u64> {
    let values: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f64::to_bits).collect()
}

/// What a checkpoint of one adapter holds.
pub(crate) fn saved(model: &PeftModel<TinyModel>, adapter: &str) -> Tensors {
    let adapter = model.adapter(adapter).unwrap();
    adapter.params.persisted().map(|(key, tensor)| (key.to_string(), tensor.copy().unwrap())).collect()
}

/// What a look at one host gives.
pub(crate) fn at<T>(model: &impl Adaptable, path: &str, look: impl Fn(&dyn Host) -> T) -> T {
    let mut found = None;
    let mut each = |here: &str, host: &dyn Host| {
        if here == path {
            found = Some(look(host));
        }
        Ok(())
    };
    model.visit(&mut Walk::new(&mut each)).unwrap();
    found.unwrap_or_else(|| panic!("there is no host at {path}"))
}

/// The weight of one host as it is stored.
pub(crate) fn weight(model: &PeftModel<TinyModel>, path: &str) -> Tensor {
    at(model.base(), path, |host| host.base().stored().unwrap().clone())
}
