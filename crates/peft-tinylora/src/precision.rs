//! The dtype that projections were rounded to.

use candle_core::{DType, Tensor};
use peft_core::{BaseWeight, Result, Site, SvdFactors};

/// The dtype that the projection of a site was rounded to.
///
/// Without the base model the factors tell: they were rounded like the projection was.
pub(crate) fn of_projection(site: &Site, SvdFactors { a, b, .. }: &SvdFactors) -> Result<DType> {
    if !matches!(site.base, BaseWeight::Absent) {
        return Ok(site.values);
    }
    for dtype in [DType::BF16, DType::F16] {
        if survives(a, dtype)? && survives(b, dtype)? {
            return Ok(dtype);
        }
    }
    Ok(site.values)
}

/// Whether rounding to `dtype` changes nothing.
fn survives(tensor: &Tensor, dtype: DType) -> Result<bool> {
    let rounded = tensor.to_dtype(dtype)?.to_dtype(tensor.dtype())?;
    Ok(rounded.eq(tensor)?.flatten_all()?.min(0)?.to_scalar::<u8>()? == 1)
}
