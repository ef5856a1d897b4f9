//! Operands: matrices in any memory order, of any of the types that are multiplied in f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The elements that a matrix is made of.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

/// A matrix with a stride for each dimension.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: Values<'a>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix stored row by row.
    pub(crate) fn row_major(values: Values<'a>, rows: usize, columns: usize) -> Self {
        let len = match values {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::F16(values) => values.len(),
        };
        assert!(len >= rows * columns);
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// A matrix of f32 stored row by row.
    pub(crate) fn of(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::row_major(Values::F32(values), rows, columns)
    }

    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The numbers themselves with their strides, where nothing has to be widened.
    pub(crate) fn as_f32(&self) -> Option<(&'a [f32], usize, usize)> {
        match self.values {
            Values::F32(values) => Some((values, self.row_stride, self.column_stride)),
            _ => None,
        }
    }

    /// Whether the elements of a column are neighbours in memory.
    pub(crate) fn is_column_major(&self) -> bool {
        self.row_stride == 1 && self.column_stride != 1
    }

    /// `out.len()` elements of a row from `column` on, of a matrix whose rows are contiguous.
    #[inline(always)]
    pub(crate) fn read_row(&self, row: usize, column: usize, out: &mut [f32]) {
        self.read_run(row * self.row_stride + column, out);
    }

    /// `out.len()` elements of a column from `row` on, of a matrix whose columns are contiguous.
    #[inline(always)]
    pub(crate) fn read_column(&self, row: usize, column: usize, out: &mut [f32]) {
        self.read_run(column * self.column_stride + row, out);
    }

    #[inline(always)]
    fn read_run(&self, start: usize, out: &mut [f32]) {
        match self.values {
            Values::F32(values) => out.copy_from_slice(&values[start..][..out.len()]),
            Values::Bf16(values) => {
                for (out, value) in out.iter_mut().zip(&values[start..]) {
                    *out = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
            }
            Values::F16(values) => {
                let len = out.len();
                values[start..][..len].convert_to_f32_slice(out);
            }
        }
    }
}
