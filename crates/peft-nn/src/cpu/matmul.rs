use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::gemm::{ByRows, Matrix, Panels, product, product_by_rows};
use super::{Element, Operand, value};
use crate::graph::Value;

/// The product of two matrices on the CPU, added up in f32 and rounded once; `None` where there is no kernel for the dtype or the
/// order of the elements.
pub(crate) fn matmul(lhs: &Tensor, rhs: &Tensor) -> Result<Option<Value>> {
    let takes = |t: &Tensor| t.device().is_cpu() && (t.is_contiguous() || t.layout().is_fortran_contiguous());
    if lhs.dtype() != rhs.dtype() || !takes(lhs) || !takes(rhs) {
        return Ok(None);
    }
    let (a, b) = (Operand::of(lhs)?, Operand::of(rhs)?);
    match lhs.dtype() {
        DType::F32 => typed::<f32>(a.matrix()?, b.matrix()?).map(Some),
        DType::BF16 => typed::<bf16>(a.matrix()?, b.matrix()?).map(Some),
        DType::F16 => typed::<f16>(a.matrix()?, b.matrix()?).map(Some),
        _ => Ok(None),
    }
}

fn typed<T: Element<Acc = f32>>(lhs: Matrix<'_>, rhs: Matrix<'_>) -> Result<Value> {
    let (rows, columns) = (lhs.rows, rhs.columns);
    if rhs.is_column_major() {
        let mut out = vec![T::zero(); rows * columns];
        let panels = Panels::pack(lhs.t(), true);
        product_by_rows(&mut out, columns, &[ByRows { x: &panels, w: rhs.t() }], None);
        return Ok(value(out, (rows, columns)));
    }
    let mut out = vec![0.0; rows * columns];
    product(&mut out, &[(lhs, rhs)]);
    value(out, (rows, columns)).into_dtype(T::DTYPE)
}
