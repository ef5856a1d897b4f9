//! Law 5: save then load, or swap, is bit-exact, and what does not fit is refused.

use super::case::{Case, NAME};
use super::snapshot::Snapshot;
use super::{Finding, Verdict, ensure, when};
use crate::assert::check_same;
use crate::fixture::tensors;
use crate::tiny::TinyModel;
use candle_core::Tensor;
use peft_core::checkpoint::{CONFIG_FILE, WEIGHTS_FILE};
use peft_core::{Adapter, PeftModel};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

type Tensors = BTreeMap<String, Tensor>;

pub(super) fn check(case: &Case) -> Verdict {
    let trained = case.trained()?;
    let folder = tempfile::tempdir()?;
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    trained.save_adapter(NAME, &first)?;
    let mut loaded = case.elsewhere()?;
    loaded.load_adapter(NAME, &first, &case.registry)?;
    same_adapter(case, &loaded, &trained)?;
    let mut swapped = case.fresh()?;
    swapped.eval()?;
    swapped.hotswap_adapter(NAME, &first, &case.registry)?;
    same_adapter(case, &swapped, &trained)?;
    loaded.save_adapter(NAME, &second)?;
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        let (a, b) = (fs::read(first.join(file))?, fs::read(second.join(file))?);
        ensure(a == b, || format!("{file} has other bytes when what was loaded is saved again"))?;
    }
    refusals(case, &trained, &tensors(first.join(WEIGHTS_FILE))?)
}

fn same_adapter(case: &Case, loaded: &PeftModel<TinyModel>, trained: &PeftModel<TinyModel>) -> Verdict {
    let (found, expected) = (loaded.adapter(NAME)?, trained.adapter(NAME)?);
    let keys = |adapter: &Adapter| adapter.params.persisted().map(|(key, _)| key.to_string()).collect::<Vec<_>>();
    ensure(keys(found) == keys(expected), || format!("loaded {:?}, saved {:?}", keys(found), keys(expected)))?;
    for ((key, a), (_, b)) in found.params.persisted().zip(expected.params.persisted()) {
        when("loaded, against what was saved", check_same(&key.to_string(), a, b))?;
    }
    let logits = check_same("the logits", &case.logits(loaded)?, &case.logits(trained)?);
    when("loaded, against what was saved", logits)
}

/// Damages a checkpoint in every way that loading must notice.
fn refusals(case: &Case, trained: &PeftModel<TinyModel>, whole: &Tensors) -> Verdict {
    for extra in ["base_model.model.lm_head.stowaway", "base_model.stowaway"] {
        let mut damaged = whole.clone();
        let any = whole.values().next().ok_or_else(|| Finding("the checkpoint is empty".into()))?;
        damaged.insert(extra.into(), any.clone());
        refused(case, &damaged, extra, &format!("with the extra tensor `{extra}`"))?;
    }
    let adapter = trained.adapter(NAME)?;
    let trainable: BTreeSet<String> = adapter.params.trainable().map(|(key, _)| key.to_string()).collect();
    for (name, tensor) in whole {
        let mut damaged = whole.clone();
        damaged.remove(name);
        let mut model = case.elsewhere()?;
        let loads = model.add_from_source(NAME, adapter.config.clone(), &damaged).is_ok();
        if trainable.contains(name) || !loads {
            refused(case, &damaged, name, &format!("without the tensor `{name}`"))?;
        } else {
            // A frozen tensor may be absent where that makes no difference.
            let logits = check_same("the logits", &case.logits(&model)?, &case.logits(trained)?);
            when(&format!("loaded without the tensor `{name}`"), logits)?;
        }
        let mut damaged = whole.clone();
        damaged.insert(name.clone(), Tensor::cat(&[tensor, &tensor.narrow(0, 0, 1)?], 0)?);
        refused(case, &damaged, name, &format!("with one row too many in `{name}`"))?;
    }
    Ok(())
}

/// Loading must fail, say why, and leave the model as it was.
fn refused(case: &Case, damaged: &Tensors, culprit: &str, how: &str) -> Verdict {
    let mut model = case.elsewhere()?;
    let before = Snapshot::of(case, &model)?;
    match model.add_from_source(NAME, case.config.clone(), damaged) {
        Ok(_) => return Err(Finding(format!("a checkpoint {how} was loaded"))),
        Err(error) => {
            ensure(error.to_string().contains(culprit), || {
                format!("a checkpoint {how} was refused without naming the tensor: {error}")
            })?;
        }
    }
    when(&format!("after refusing a checkpoint {how}"), before.check(case, &model))
}
