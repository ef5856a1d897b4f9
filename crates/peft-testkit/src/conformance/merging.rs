//! Law 4: merge then unmerge is bit-exact.

use super::case::Case;
use super::snapshot::{Snapshot, Weights};
use super::{Verdict, ensure, when};
use crate::assert::check_relatively_close;
use candle_core::DType;

pub(super) fn check(case: &Case) -> Verdict {
    let mut model = case.trained()?;
    let before = Snapshot::of(case, &model)?;
    let separate = case.logits(&model)?;
    model.merge()?;
    let (merged, together) = (Weights::of(&model)?, case.logits(&model)?);
    ensure(!together.track_op(), || "merged weights drag a graph along".into())?;
    // Weights of 16 bits are rounded by merging, and what that does to logits depends on the model.
    if let Some(tolerance) = tolerance(case.spec.dtype) {
        let close = check_relatively_close("the logits", &together, &separate, tolerance);
        when("merged, against the adapter beside the weights", close)?;
    }
    model.unmerge()?;
    when("after merge and unmerge", before.check(case, &model))?;
    model.merge()?;
    when("merged a second time, against the first", Weights::of(&model)?.check(&merged))?;
    model.unmerge()?;
    when("after the second unmerge", before.check(case, &model))
}

fn tolerance(dtype: DType) -> Option<f64> {
    match dtype {
        DType::F64 => Some(1e-11),
        DType::F32 => Some(1e-4),
        _ => None,
    }
}
