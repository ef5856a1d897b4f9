use candle_core::backend::BackendStorage;
use candle_core::{DType, Result, Storage, StorageRef, Tensor, WithDType, bail};

use super::gemm::{Matrix, Values};

/// A matrix on the CPU, to be multiplied in f32.
pub(crate) struct Operand<'a> {
    storage: StorageRef<'a>,
    start: usize,
    rows: usize,
    columns: usize,
    /// Stored column by column.
    transposed: bool,
}

impl<'a> Operand<'a> {
    /// Borrows the elements of a contiguous matrix, or of the transposed view of one.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        let (storage, layout) = tensor.storage_and_layout();
        let transposed = !layout.is_contiguous();
        if transposed && !layout.is_fortran_contiguous() {
            bail!("a matrix product needs a contiguous matrix or a transposed one, got {layout:?}");
        }
        Ok(Self { start: layout.start_offset(), storage, rows, columns, transposed })
    }

    pub(crate) fn matrix(&self) -> Result<Matrix<'_>> {
        let Storage::Cpu(storage) = &*self.storage else {
            bail!("a cpu kernel needs a tensor on the cpu, got one on {:?}", self.storage.device())
        };
        let range = self.start..self.start + self.rows * self.columns;
        let values = match storage.dtype() {
            DType::F32 => Values::F32(&f32::cpu_storage_as_slice(storage)?[range]),
            DType::BF16 => Values::Bf16(&half::bf16::cpu_storage_as_slice(storage)?[range]),
            DType::F16 => Values::F16(&half::f16::cpu_storage_as_slice(storage)?[range]),
            other => bail!("a matrix product in f32 takes f32, bf16 and f16, got {}", other.as_str()),
        };
        Ok(if self.transposed {
            Matrix::row_major(values, self.columns, self.rows).t()
        } else {
            Matrix::row_major(values, self.rows, self.columns)
        })
    }
}
