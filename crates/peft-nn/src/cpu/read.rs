use std::ops::Range;

use candle_core::{Result, Shape, Storage, StorageRef, Tensor, WithDType, bail};

use crate::graph::Value;

/// Read access to the elements of a contiguous tensor on the CPU.
pub(crate) struct Elements<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

/// Borrows the elements of a contiguous tensor on the CPU.
pub(crate) fn read(tensor: &Tensor) -> Result<Elements<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(Elements { storage, range: start..end }),
        None => bail!("a cpu kernel needs a contiguous tensor, got {layout:?}"),
    }
}

impl Elements<'_> {
    pub(crate) fn as_slice<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&T::cpu_storage_as_slice(storage)?[self.range.clone()]),
            other => bail!("a cpu kernel needs a tensor on the cpu, got one on {:?}", other.device()),
        }
    }
}

/// The result of a CPU kernel.
pub(crate) fn value<T: WithDType>(elements: Vec<T>, shape: impl Into<Shape>) -> Value {
    Value::Storage(Storage::Cpu(T::to_cpu_storage_owned(elements)), shape.into())
}
