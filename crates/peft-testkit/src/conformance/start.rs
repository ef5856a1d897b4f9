//! Laws 2 and 3: what a fresh adapter is.

use super::case::{Case, NAME, equal};
use super::delta::VisitHosts;
use super::snapshot::Weights;
use super::{Verdict, ensure, when};
use crate::assert::check_same;
use crate::tiny::TinyModel;
use peft_core::{Adapter, AdapterConfig, PeftModel, plan};

/// The same model and config give the same sites, keys, order and values.
pub(super) fn repeatable(case: &Case) -> Verdict {
    let (first, second) = (case.fresh()?, case.fresh()?);
    let (a, b) = (first.adapter(NAME)?, second.adapter(NAME)?);
    let paths = |adapter: &Adapter| adapter.sites.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    ensure(paths(a) == paths(b), || format!("one adapter sits at {:?}, the next at {:?}", paths(a), paths(b)))?;
    let planned: Vec<String> = plan(case.base()?.base(), &case.config.method)?.into_iter().map(|s| s.path).collect();
    ensure(planned == paths(a), || format!("{planned:?} were planned, {:?} were adapted", paths(a)))?;
    ensure(paths(a) == layered(&first)?, || {
        format!("{:?} are in the order of the visit, {:?} are not", layered(&first), paths(a))
    })?;
    let json = |config: &AdapterConfig| config.to_json();
    ensure(json(&a.config)? == json(&b.config)?, || "the configs differ".into())?;
    let keys = |adapter: &Adapter| -> Vec<String> {
        let trainable = adapter.params.trainable().map(|(key, _)| format!("trainable {key}"));
        trainable.chain(adapter.params.persisted().map(|(key, _)| key.to_string())).collect()
    };
    ensure(keys(a) == keys(b), || format!("one adapter has {:?}, the next {:?}", keys(a), keys(b)))?;
    for ((key, a), (_, b)) in a.params.persisted().zip(b.params.persisted()) {
        when("made twice from the same seed", check_same(&key.to_string(), a, b))?;
    }
    ensure(!a.config.method.peft_type().is_empty(), || "the method has no `peft_type`".into())
}

/// The paths of hosts that have a layer of the adapter, in visit order.
fn layered(model: &PeftModel<TinyModel>) -> peft_core::Result<Vec<String>> {
    let mut paths = vec![];
    model.base().visit_hosts(&mut |path, host| {
        if host.slots().layer(NAME).is_some() {
            paths.push(path.to_owned());
        }
    })?;
    Ok(paths)
}

/// A fresh identity-initialised adapter changes nothing, and no fresh adapter changes a weight.
pub(super) fn identity(case: &Case) -> Verdict {
    let base = case.base()?;
    let mut fresh = case.fresh()?;
    when("after adding an adapter", Weights::of(&fresh)?.check(&Weights::of(&base)?))?;
    if !case.starts_as_identity {
        return Ok(());
    }
    let expected = case.logits(&base)?;
    let same = |logits| equal(&logits, &expected);
    ensure(same(case.logits(&fresh)?)?, || "a fresh adapter changes the logits in training mode".into())?;
    fresh.eval()?;
    ensure(same(case.logits(&fresh)?)?, || "a fresh adapter changes the logits in inference mode".into())
}
