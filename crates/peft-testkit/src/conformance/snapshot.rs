//! The state of a model, for telling whether something changed it.

use super::case::Case;
use super::delta::VisitHosts;
use crate::assert::{Mismatch, check_same};
use crate::tiny::TinyModel;
use candle_core::Tensor;
use peft_core::{PeftModel, Result};

/// Copies of a model's weights and biases.
pub(super) struct Weights(Vec<(String, Tensor)>);

impl Weights {
    pub(super) fn of(model: &PeftModel<TinyModel>) -> Result<Self> {
        let mut all = vec![];
        let mut failed = None;
        model.base().visit_hosts(&mut |path, host| {
            let mut keep = |name: &str, tensor: &Tensor| match tensor.copy() {
                Ok(copy) => all.push((format!("{path}.{name}"), copy)),
                Err(error) => failed = Some(error),
            };
            if let Ok(weight) = host.base().stored() {
                keep("weight", weight);
            }
            if let Some(bias) = host.bias() {
                keep("bias", bias);
            }
        })?;
        failed.map_or(Ok(Self(all)), |error| Err(error.into()))
    }

    /// Whether these are the expected weights, bit for bit.
    pub(super) fn check(&self, expected: &Self) -> std::result::Result<(), Mismatch> {
        if self.0.len() != expected.0.len() {
            return Err(Mismatch::new(format!("{} tensors, expected {}", self.0.len(), expected.0.len())));
        }
        self.0.iter().zip(&expected.0).try_for_each(|((name, a), (_, b))| check_same(name, a, b))
    }
}

/// Weights, adapters and logits of a model.
pub(super) struct Snapshot {
    weights: Weights,
    /// Attached and active adapters, and what sits at each host in which mode.
    structure: String,
    params: Vec<(String, Tensor)>,
    logits: Tensor,
}

impl Snapshot {
    pub(super) fn of(case: &Case, model: &PeftModel<TinyModel>) -> Result<Self> {
        let names: Vec<&str> = model.adapters().iter().map(|a| &*a.name).collect();
        let mut structure = format!("adapters {names:?}, active {:?}", model.active().collect::<Vec<_>>());
        model.base().visit_hosts(&mut |path, host| {
            let slots = host.slots();
            let adapters: Vec<&str> = slots.adapters().collect();
            let state = (slots.is_live(), slots.is_merged(), slots.mode(), adapters);
            structure.push_str(&format!("; {path} {state:?}"));
        })?;
        let mut params = vec![];
        for adapter in model.adapters() {
            for (key, tensor) in adapter.params.persisted() {
                params.push((format!("{} {key}", adapter.name), tensor.copy()?));
            }
        }
        Ok(Self { weights: Weights::of(model)?, structure, params, logits: case.logits(model)?.detach() })
    }

    /// Whether the model still is as it was.
    pub(super) fn check(&self, case: &Case, model: &PeftModel<TinyModel>) -> std::result::Result<(), Mismatch> {
        let now = Self::of(case, model).map_err(|e| Mismatch::new(e.to_string()))?;
        now.weights.check(&self.weights)?;
        if now.structure != self.structure {
            return Err(Mismatch::new(format!("the model is now: {}; it was: {}", now.structure, self.structure)));
        }
        if now.params.len() != self.params.len() {
            return Err(Mismatch::new("the adapters have another number of tensors"));
        }
        now.params.iter().zip(&self.params).try_for_each(|((name, a), (_, b))| check_same(name, a, b))?;
        check_same("the logits", &now.logits, &self.logits)
    }
}
