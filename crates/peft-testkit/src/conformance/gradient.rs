//! Law 7: every trainable gets the right gradient, and inference builds no graph.

use super::case::{Case, equal};
use super::{Verdict, ensure, when};
use crate::tiny::{TinyModel, TinySpec, noise};
use candle_core::{DType, Result as CandleResult, Tensor};
use peft_core::PeftModel;

pub(super) fn check(case: &Case) -> Verdict {
    let mut model = case.fresh()?;
    ensure(!model.trainable().is_empty(), || "nothing is trainable".into())?;
    ensure(case.logits(&model)?.track_op(), || "training builds no graph".into())?;
    model.eval()?;
    ensure(!case.logits(&model)?.track_op(), || "inference builds a graph".into())?;
    // The rest needs more digits than the model may have; the graph is the same.
    in_f64(&case.clone().on(TinySpec { dtype: DType::F64, ..case.spec.clone() }))
}

fn in_f64(case: &Case) -> Verdict {
    let mut model = case.fresh()?;
    model.eval()?;
    let before = case.logits(&model)?;
    case.stir(&model)?;
    ensure(!equal(&case.logits(&model)?, &before)?, || {
        "inference does not see that the trainable numbers changed".into()
    })?;
    model.train()?;
    let loss = || loss(case, &model);
    model.audit_gradients(&loss()?.backward()?)?;
    if !case.exact_gradient {
        return Ok(());
    }
    when("in f64", crate::gradient::check(&model.trainable(), &loss))
}

/// A number that depends on every logit, each in its own way. The masks of dropout are the same in every call.
fn loss(case: &Case, model: &PeftModel<TinyModel>) -> CandleResult<Tensor> {
    model.reseed(5)?;
    let logits = case.logits(model)?.to_dtype(DType::F64)?;
    let weights = noise(logits.shape(), DType::F64, 17)?;
    (logits.sqr()? * 0.5)?.add(&(logits * weights)?)?.mean_all()
}
