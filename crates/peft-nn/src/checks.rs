//! Checks of operands that several operators share.

use candle_core::{DType, Result, Tensor, bail};

/// An error unless `tensor` holds one of the float types that the operators compute with.
pub(crate) fn ensure_float(op: &str, operand: &str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F64 | DType::BF16 | DType::F16 => Ok(()),
        other => bail!("{op}: the {operand} is {}, expected one of f32, f64, bf16, f16", other.as_str()),
    }
}

/// An error unless `tensor` has the dtype of the operator's input: nothing is promoted silently.
pub(crate) fn ensure_dtype(op: &str, operand: &str, tensor: &Tensor, dtype: DType) -> Result<()> {
    if tensor.dtype() != dtype {
        bail!("{op}: the {operand} is {} but the input is {}", tensor.dtype().as_str(), dtype.as_str());
    }
    Ok(())
}

/// An error unless `tensor` has this shape.
pub(crate) fn ensure_shape(op: &str, operand: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dims() != shape {
        bail!("{op}: the {operand} has shape {:?}, expected {shape:?}", tensor.dims());
    }
    Ok(())
}

/// The last dimension of a tensor that must have one.
pub(crate) fn last_dim(op: &str, operand: &str, tensor: &Tensor) -> Result<usize> {
    match tensor.dims().last() {
        Some(&width) => Ok(width),
        None => bail!("{op}: the {operand} is a scalar, expected at least one dimension"),
    }
}

/// The dtype that arithmetic on `dtype` runs in.
pub(crate) fn acc_dtype(dtype: DType) -> DType {
    match dtype {
        DType::BF16 | DType::F16 => DType::F32,
        other => other,
    }
}
