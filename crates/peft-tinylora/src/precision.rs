//! The dtypes that a TinyLoRA adapter computes in and rounds to.

use candle_core::{DType, Tensor};
use peft_core::{BaseWeight, Result, Site};

/// The dtype of an adapter's tensors on a base of this dtype: 16-bit bases have f32 adapters.
pub(crate) fn storage(base: DType) -> DType {
    match base {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// The dtype whose values an adapter's frozen tensors have on a base of this dtype: those of 16-bit bases are rounded like the
/// base before they are widened.
pub(crate) fn rounding(base: DType) -> DType {
    match base {
        DType::F64 | DType::BF16 | DType::F16 => base,
        _ => DType::F32,
    }
}

/// The dtype that the projection of a site was rounded to.
///
/// Without the base model the factors tell: they were rounded like the projection was.
pub(crate) fn of_projection(site: &Site, a: &Tensor, b: &Tensor) -> Result<DType> {
    if !matches!(site.base, BaseWeight::Absent) {
        return Ok(rounding(site.spec.dtype));
    }
    for dtype in [DType::BF16, DType::F16] {
        if survives(a, dtype)? && survives(b, dtype)? {
            return Ok(dtype);
        }
    }
    Ok(rounding(site.spec.dtype))
}

/// Whether rounding to `dtype` changes nothing.
fn survives(tensor: &Tensor, dtype: DType) -> Result<bool> {
    let rounded = tensor.to_dtype(dtype)?.to_dtype(tensor.dtype())?;
    Ok(rounded.eq(tensor)?.flatten_all()?.min(0)?.to_scalar::<u8>()? == 1)
}
