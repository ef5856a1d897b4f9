use candle_core::{Result, Shape, Storage, StorageRef, Tensor, WithDType, bail};

use crate::graph::Value;

/// Read access to the elements of a tensor on the CPU.
pub(crate) struct Elements<'a> {
    storage: StorageRef<'a>,
    start: usize,
    /// Where they end if they are contiguous.
    end: Option<usize>,
}

/// Borrows the elements of a contiguous tensor on the CPU.
pub(crate) fn read(tensor: &Tensor) -> Result<Elements<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(Elements { storage, start, end: Some(end) }),
        None => bail!("a cpu kernel needs a contiguous tensor, got {layout:?}"),
    }
}

/// Borrows the elements of a tensor on the CPU from its first one on, whatever its strides.
pub(crate) fn read_strided(tensor: &Tensor) -> Elements<'_> {
    let (storage, layout) = tensor.storage_and_layout();
    Elements { storage, start: layout.start_offset(), end: None }
}

impl Elements<'_> {
    pub(crate) fn as_slice<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => {
                let elements = T::cpu_storage_as_slice(storage)?;
                Ok(&elements[self.start..self.end.unwrap_or(elements.len())])
            }
            other => bail!("a cpu kernel needs a tensor on the cpu, got one on {:?}", other.device()),
        }
    }
}

/// The result of a CPU kernel.
pub(crate) fn value<T: WithDType>(elements: Vec<T>, shape: impl Into<Shape>) -> Value {
    Value::Storage(Storage::Cpu(T::to_cpu_storage_owned(elements)), shape.into())
}

/// The elements of a result on the CPU.
pub(crate) fn elements<T: WithDType>(value: Value) -> Result<Vec<T>> {
    match value {
        Value::Storage(Storage::Cpu(storage), _) => T::cpu_storage_data(storage),
        value => Ok(read(&value.into_tensor().contiguous()?)?.as_slice::<T>()?.to_vec()),
    }
}
