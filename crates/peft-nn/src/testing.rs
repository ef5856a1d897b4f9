//! What the unit tests share that compare a kernel with its specification.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Shape, Tensor};

use crate::cpu::simd::with_each_arch;
use crate::graph::Value;

/// The dtypes of a comparison, each with the tolerance that its rounding asks for.
pub(crate) const DTYPES: [(DType, f64); 4] =
    [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 1.0 / 64.0), (DType::F16, 1.0 / 512.0)];

/// Lengths of rows: less than a register, some registers and a rest, more than is processed at a time.
pub(crate) const WIDTHS: [usize; 3] = [5, 75, 1100];

/// Calls `f` with each dtype, its tolerance and each width.
pub(crate) fn for_each_case(mut f: impl FnMut(DType, f64, usize) -> Result<()>) {
    for (dtype, tolerance) in DTYPES {
        for width in WIDTHS {
            f(dtype, tolerance, width).unwrap();
        }
    }
}

/// Processors that differ in their vector instructions compute the same.
#[track_caller]
pub(crate) fn assert_same_bits_on_each_arch(run: impl Fn() -> Result<Vec<Tensor>>) {
    let mut expected: Option<Vec<Vec<u64>>> = None;
    with_each_arch(|| {
        let bits = |t: &Tensor| elements(t).into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let bits = run().unwrap().iter().map(bits).collect::<Vec<_>>();
        assert!(expected.get_or_insert_with(|| bits.clone()) == &bits);
    });
}

fn elements(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
}

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
