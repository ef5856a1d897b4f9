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
    products::<T>(&[(lhs, rhs)])
}

/// `sum over the terms of lhs rhs`, rounded once, by whichever product reads the right sides as they lie.
pub(crate) fn products<T: Element<Acc = f32>>(terms: &[(Matrix<'_>, Matrix<'_>)]) -> Result<Value> {
    let (rows, columns) = terms.first().map_or((0, 0), |(lhs, rhs)| (lhs.rows, rhs.columns));
    if terms.iter().any(|(_, rhs)| !rhs.is_column_major()) {
        let mut out = vec![0.0; rows * columns];
        product(&mut out, terms);
        return value(out, (rows, columns)).into_dtype(T::DTYPE);
    }
    let panels: Vec<Panels> = terms.iter().map(|(lhs, _)| Panels::pack(lhs.t(), true)).collect();
    let terms: Vec<ByRows<'_>> = panels.iter().zip(terms).map(|(x, (_, rhs))| ByRows { x, w: rhs.t() }).collect();
    let mut out = vec![T::zero(); rows * columns];
    product_by_rows(&mut out, columns, &terms, None);
    Ok(value(out, (rows, columns)))
}
