//! Law 6: what fails leaves the model untouched.

use super::case::{Case, NAME};
use super::snapshot::Snapshot;
use super::{Finding, Verdict, when};
use crate::tiny::TinyModel;
use candle_core::{Device, Shape, Tensor};
use peft_core::{Error, PeftModel, Result, TensorSource};
use std::collections::{BTreeMap, BTreeSet};

/// The name under which adapters are added that must not come to be.
const OTHER: &str = "other";

pub(super) fn check(case: &Case) -> Verdict {
    let mut model = case.trained()?;
    let before = Snapshot::of(case, &model)?;
    let untouched =
        |what: &str, model: &PeftModel<TinyModel>| when(&format!("after {what} failed"), before.check(case, model));

    must_fail(
        "adding an adapter whose targets match nothing",
        model.add_adapter(OTHER, case.misdirected.clone()).map(drop),
    )?;
    untouched("adding an adapter whose targets match nothing", &model)?;
    must_fail("adding a second adapter of the same name", model.add_adapter(NAME, case.config.clone()).map(drop))?;
    untouched("adding a second adapter of the same name", &model)?;

    let persisted = model.adapter(NAME)?.params.persisted();
    let tensors: BTreeMap<String, Tensor> =
        persisted.map(|(key, t)| Ok((key.to_string(), t.copy()?))).collect::<Result<_>>()?;
    for name in tensors.keys() {
        let source = Unreadable { tensors: &tensors, name };
        let what = format!("loading a checkpoint whose `{name}` cannot be read");
        must_fail(&what, model.add_from_source(OTHER, case.config.clone(), &source).map(drop))?;
        untouched(&what, &model)?;
        let what = format!("swapping the adapter for a checkpoint whose `{name}` cannot be read");
        must_fail(&what, model.hotswap_from_source(NAME, case.config.clone(), &source).map(drop))?;
        untouched(&what, &model)?;
    }

    let params: Vec<_> = model.trainable().into_iter().map(|(_, var)| Ok((var.copy()?, var))).collect::<Result<_>>()?;
    for (value, var) in &params {
        var.set(&(value.zeros_like()? / 0.0)?)?;
    }
    must_fail("merging an adapter that is NaN throughout", model.safe_merge())?;
    for (value, var) in &params {
        var.set(value)?;
    }
    untouched("merging an adapter that is NaN throughout", &model)
}

fn must_fail(what: &str, outcome: Result<()>) -> Verdict {
    if outcome.is_err() { Ok(()) } else { Err(Finding(format!("{what} succeeded"))) }
}

/// A checkpoint with one tensor that cannot be read.
struct Unreadable<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    name: &'a str,
}

impl TensorSource for Unreadable<'_> {
    fn names(&self) -> BTreeSet<String> {
        self.tensors.names()
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        self.tensors.shape(name)
    }

    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        if name == self.name {
            return Err(Error::config(format!("`{name}` cannot be read")));
        }
        self.tensors.load(name, device)
    }
}
