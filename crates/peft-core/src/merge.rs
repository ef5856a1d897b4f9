//! Folding adapters into base weights, and taking them out again bit for bit.

use crate::adapter::plus_bias;
use crate::slots::Merged;
use crate::{Error, Host, Mode, Result};
use candle_core::{DType, Tensor};

/// Folds every active adapter into the host's weight and bias; on an error the host is untouched.
///
/// The original weight is kept, so [`unmerge`] is exact. `finite` refuses a result that holds NaN or infinity.
pub(crate) fn merge(path: &str, host: &mut dyn Host, finite: bool) -> Result<()> {
    if host.slots().is_merged() {
        return Err(Error::Merged { attempted: "merge again" });
    }
    if !host.slots().is_live() {
        return Ok(());
    }
    let (original, original_bias) = (host.base().clone(), host.bias().cloned());
    let (weight, bias) = host.slots().replaced();
    let mut folded = match weight {
        // A copy: an optimiser writes the trained tensor in place, merged weights stand still.
        Some(weight) => original.with_stored(weight.copy()?),
        None => original.clone(),
    };
    let mut bias = match bias {
        Some(bias) => Some(bias.copy()?),
        None => original_bias.clone(),
    };
    let mut adapters = vec![];
    for (adapter, attachment) in host.slots().pending() {
        if let Some(layer) = &attachment.layer {
            folded = folded.plus(&layer.delta_weight(&folded.canonical()?)?)?;
            let change = layer.delta_bias(bias.as_ref(), Mode::Infer)?;
            bias = plus_bias(bias, change)?;
        }
        let all_finite = || Ok::<_, Error>(is_finite(folded.stored()?)? && bias.as_ref().map_or(Ok(true), is_finite)?);
        if finite && !all_finite()? {
            return Err(Error::NonFinite { adapter: adapter.to_string(), path: path.to_owned() });
        }
        adapters.push(adapter.clone());
    }
    host.set_base(folded, bias)?;
    host.slots_mut().set_merged(Merged { base: original, bias: original_bias, adapters });
    Ok(())
}

/// Restores the weight from before the merge, bit for bit.
pub(crate) fn unmerge(host: &mut dyn Host) -> Result<()> {
    if let Some(merged) = host.slots().merged().cloned() {
        host.set_base(merged.base, merged.bias)?;
        host.slots_mut().take_merged();
    }
    Ok(())
}

/// Whether every element is a finite number: infinities and NaN survive a multiplication with zero, nothing else does.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let wide = if tensor.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let zero = (tensor.to_dtype(wide)? * 0.0)?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
    Ok(zero == 0.0)
}
