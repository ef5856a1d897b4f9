//! What the unit tests share that compare a kernel with its specification.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Shape, Tensor};

use crate::graph::Value;

/// The dtypes of a comparison, each with the tolerance that its rounding asks for.
pub(crate) const DTYPES: [(DType, f64); 3] = [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 1.0 / 64.0)];

/// Irregular values in -2..2 that depend on nothing but shape and seed.
pub(crate) fn sample(shape: impl Into<Shape>, seed: usize, dtype: DType) -> Tensor {
    let shape = shape.into();
    let values = (0..shape.elem_count()).map(|i| 2.0 * ((i * i + 7 * i + 13 * seed + 1) as f64 * 0.7).sin());
    let values = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap();
    values.to_dtype(dtype).unwrap()
}

#[track_caller]
pub(crate) fn assert_close(kernel: &Tensor, composed: &Tensor, tolerance: f64) {
    assert_eq!((kernel.dims(), kernel.dtype()), (composed.dims(), composed.dtype()));
    let elements = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for (i, (a, b)) in elements(kernel).into_iter().zip(elements(composed)).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "element {i}: {a} by the kernel, {b} composed");
    }
}

#[track_caller]
pub(crate) fn assert_same_value(kernel: Result<Value>, composed: Result<Tensor>, tolerance: f64) {
    assert_close(&kernel.unwrap().into_tensor(), &composed.unwrap(), tolerance);
}

/// Every gradient is wanted, so every gradient must be there.
#[track_caller]
pub(crate) fn assert_same_gradients<const N: usize>(
    kernel: Result<[Option<Tensor>; N]>,
    composed: Result<[Option<Tensor>; N]>,
    tolerance: f64,
) {
    for (kernel, composed) in kernel.unwrap().into_iter().zip(composed.unwrap()) {
        assert_close(&kernel.unwrap(), &composed.unwrap(), tolerance);
    }
}
