//! Products of matrices in the type of the arithmetic: the kernels of this crate for f32 and 16 bits, candle's for f64.

use std::ops::Range;

use candle_core::{CpuStorageRef, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::cpu::gemm::{ByRows, Matrix, Panels, Values, product, product_by_rows};
use crate::cpu::simd::{Sum, dispatch, update_with};
use crate::cpu::{Element, for_each_row};
use crate::cross_entropy::NAME;
use pulp::{Simd, WithSimd};

/// A matrix that lies row by row, or the transpose of one.
#[derive(Clone)]
pub(super) struct Side<'a> {
    values: CpuStorageRef<'a>,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Side<'a> {
    /// All of `values` as a matrix that lies row by row.
    pub(super) fn of<T: WithDType>(values: &'a [T], rows: usize, columns: usize) -> Self {
        Self { values: T::cpu_storage_ref(values), rows, columns, transposed: false }
    }

    pub(super) fn t(&self) -> Self {
        let values = self.values.clone();
        Self { values, rows: self.columns, columns: self.rows, transposed: !self.transposed }
    }

    /// Whether some rows lie together.
    pub(super) fn has_contiguous_rows(&self) -> bool {
        !self.transposed
    }

    /// Some rows of a matrix that lies row by row, or all of any.
    pub(super) fn rows(&self, range: Range<usize>) -> Result<Self> {
        if range == (0..self.rows) {
            return Ok(self.clone());
        }
        if self.transposed {
            bail!("{NAME}: rows {range:?} of a matrix that lies column by column")
        }
        let elements = range.start * self.columns..range.end * self.columns;
        let values = match self.values {
            CpuStorageRef::F32(values) => CpuStorageRef::F32(&values[elements]),
            CpuStorageRef::F64(values) => CpuStorageRef::F64(&values[elements]),
            CpuStorageRef::BF16(values) => CpuStorageRef::BF16(&values[elements]),
            CpuStorageRef::F16(values) => CpuStorageRef::F16(&values[elements]),
            _ => bail!("{NAME}: a matrix of no float type"),
        };
        Ok(Self { values, rows: range.len(), ..*self })
    }

    /// Rows and columns as they lie.
    fn stored(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    fn matrix(&self) -> Result<Matrix<'a>> {
        let values = match self.values {
            CpuStorageRef::F32(values) => Values::F32(values),
            CpuStorageRef::BF16(values) => Values::Bf16(values),
            CpuStorageRef::F16(values) => Values::F16(values),
            _ => bail!("{NAME}: f32, bf16 and f16 are multiplied in f32"),
        };
        let (rows, columns) = self.stored();
        let matrix = Matrix::row_major(values, rows, columns);
        Ok(if self.transposed { matrix.t() } else { matrix })
    }

    fn tensor(&self) -> Result<Tensor> {
        let CpuStorageRef::F64(values) = self.values else { bail!("{NAME}: only f64 is multiplied in f64") };
        let tensor = Tensor::from_slice(values, self.stored(), &Device::Cpu)?;
        if self.transposed { tensor.t() } else { Ok(tensor) }
    }
}

/// An element type whose matrices can be multiplied.
pub(super) trait Multiply: Element {
    /// A left side that is multiplied with many right sides.
    type Packed: Sync;

    fn pack(left: &Side<'_>) -> Result<Self::Packed>;

    /// `sum of left right^T over the terms + bias`, rounded once. Every element of `out`, `(rows of the left, rows of the right)`, is
    /// written.
    fn by_rows(out: &mut [Self], terms: &[(&Self::Packed, Side<'_>)], bias: Option<&[Self]>) -> Result<()>;

    /// `left right`. Every element of `out` is written.
    fn product(out: &mut [Self::Acc], left: &Side<'_>, right: &Side<'_>) -> Result<()>;

    /// `left right` in new memory.
    fn new_product(left: &Side<'_>, right: &Side<'_>) -> Result<Vec<Self::Acc>> {
        let mut out = vec![Self::acc(0.0); left.rows * right.columns];
        Self::product(&mut out, left, right)?;
        Ok(out)
    }
}

macro_rules! in_f32 {
    ($type:ty) => {
        impl Multiply for $type {
            type Packed = Panels;

            fn pack(left: &Side<'_>) -> Result<Panels> {
                Ok(Panels::pack(left.matrix()?.t(), true))
            }

            fn by_rows(out: &mut [Self], terms: &[(&Panels, Side<'_>)], bias: Option<&[Self]>) -> Result<()> {
                let columns = terms.first().map_or(0, |(_, right)| right.rows);
                let terms = terms.iter().map(|(x, right)| Ok(ByRows { x, w: right.matrix()? }));
                product_by_rows(out, columns, &terms.collect::<Result<Vec<_>>>()?, bias);
                Ok(())
            }

            fn product(out: &mut [f32], left: &Side<'_>, right: &Side<'_>) -> Result<()> {
                product(out, &[(left.matrix()?, right.matrix()?)]);
                Ok(())
            }
        }
    };
}

in_f32!(f32);
in_f32!(bf16);
in_f32!(f16);

impl Multiply for f64 {
    type Packed = Tensor;

    fn pack(left: &Side<'_>) -> Result<Tensor> {
        left.tensor()
    }

    fn by_rows(out: &mut [f64], terms: &[(&Tensor, Side<'_>)], bias: Option<&[f64]>) -> Result<()> {
        out.fill(0.0);
        for (left, right) in terms {
            if left.elem_count() > 0 && right.rows > 0 {
                add(out, &left.matmul(&right.tensor()?.t()?)?.flatten_all()?.to_vec1::<f64>()?);
            }
        }
        if let Some(bias) = bias.filter(|bias| !bias.is_empty()) {
            for row in out.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(())
    }

    fn product(out: &mut [f64], left: &Side<'_>, right: &Side<'_>) -> Result<()> {
        if left.columns == 0 || out.is_empty() {
            out.fill(0.0);
        } else {
            out.copy_from_slice(&left.tensor()?.matmul(&right.tensor()?)?.flatten_all()?.to_vec1::<f64>()?);
        }
        Ok(())
    }
}

/// `sums += terms`
pub(super) fn add<A: Element>(sums: &mut [A], terms: &[A]) {
    const PART: usize = 1 << 14;
    for_each_row(sums, PART, |i, sums| {
        let terms = &terms[i * PART..][..sums.len()];
        dispatch(Add { sums, terms });
    });
}

struct Add<'a, A> {
    sums: &'a mut [A],
    terms: &'a [A],
}

impl<A: Element> WithSimd for Add<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        update_with(simd, Sum, self.sums, self.terms);
    }
}
