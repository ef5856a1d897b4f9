//! Results of operators before any graph knows them.

use crate::cpu;
use candle_core::backend::BackendStorage;
use candle_core::op::{Add, BackpropOp};
use candle_core::{DType, Layout, Result, Shape, Storage, Tensor, bail};

/// A result that no graph knows yet.
pub(crate) enum Value {
    /// Contiguous elements from the start of the storage: joined without a copy.
    Storage(Storage, Shape),
    /// An untracked tensor; joining it copies it once, since its storage cannot be taken out.
    Tensor(Tensor),
}

impl Value {
    pub(crate) fn into_tensor(self) -> Tensor {
        match self {
            Self::Storage(storage, shape) => Tensor::from_storage(storage, shape, BackpropOp::none(), false),
            Self::Tensor(tensor) => tensor,
        }
    }

    /// The same elements under another shape of equal size.
    pub(crate) fn reshape(self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        match self {
            Self::Storage(storage, old) if old.elem_count() == shape.elem_count() => Ok(Self::Storage(storage, shape)),
            Self::Storage(_, old) => bail!("cannot reshape {old:?} to {shape:?}"),
            Self::Tensor(tensor) => Ok(Self::Tensor(tensor.reshape(shape)?)),
        }
    }

    /// The same elements rounded to another dtype.
    pub(crate) fn into_dtype(self, dtype: DType) -> Result<Self> {
        if let Self::Storage(storage, _) = &self
            && storage.dtype() == dtype
        {
            return Ok(self);
        }
        match self {
            Self::Tensor(tensor) => Ok(Self::Tensor(tensor.to_dtype(dtype)?)),
            Self::Storage(storage, shape) => {
                let layout = Layout::contiguous(shape.clone());
                let storage = match storage {
                    Storage::Cpu(storage) => Storage::Cpu(storage.to_dtype(&layout, dtype)?),
                    Storage::Cuda(storage) => Storage::Cuda(storage.to_dtype(&layout, dtype)?),
                    Storage::Metal(storage) => Storage::Metal(storage.to_dtype(&layout, dtype)?),
                };
                Ok(Self::Storage(storage, shape))
            }
        }
    }

    pub(super) fn into_storage(self) -> Result<(Storage, Shape)> {
        match self {
            Self::Storage(storage, shape) => Ok((storage, shape)),
            Self::Tensor(tensor) => {
                let starts_at_zero = tensor.layout().start_offset() == 0;
                let tensor =
                    if tensor.is_contiguous() && starts_at_zero { tensor } else { tensor.force_contiguous()? };
                let (storage, layout) = tensor.storage_and_layout();
                Ok((storage.try_clone(layout)?, tensor.shape().clone()))
            }
        }
    }
}

/// Applies a method of `BackendStorage` to two storages of the same backend.
macro_rules! on_same_backend {
    ($a:expr, $b:expr, |$x:ident, $y:ident| $apply:expr) => {
        match ($a, $b) {
            (Storage::Cpu($x), Storage::Cpu($y)) => Storage::Cpu($apply),
            (Storage::Cuda($x), Storage::Cuda($y)) => Storage::Cuda($apply),
            (Storage::Metal($x), Storage::Metal($y)) => Storage::Metal($apply),
            (a, b) => bail!("tensors on different devices: {:?} and {:?}", a.device(), b.device()),
        }
    };
}

/// The product of two tensors of equal rank >= 2 and equal leading dimensions, outside any graph.
pub(crate) fn matmul(lhs: &Tensor, rhs: &Tensor) -> Result<Value> {
    let rank = lhs.rank();
    let (m, k) = (lhs.dim(rank - 2)?, lhs.dim(rank - 1)?);
    let n = rhs.dim(rank - 1)?;
    let batch: usize = lhs.dims()[..rank - 2].iter().product();
    if lhs.elem_count() == 0 || rhs.elem_count() == 0 {
        return Ok(Value::Tensor(lhs.detach().matmul(&rhs.detach())?));
    }
    if rank == 2
        && k == rhs.dim(0)?
        && let Some(product) = cpu::matmul(lhs, rhs)?
    {
        return Ok(product);
    }
    let (a, a_layout) = lhs.storage_and_layout();
    let (b, b_layout) = rhs.storage_and_layout();
    let storage = on_same_backend!(&*a, &*b, |a, b| a.matmul(b, (batch, m, n, k), a_layout, b_layout)?);
    Ok(Value::Storage(storage, Shape::from(&lhs.dims()[..rank - 2]).extend(&[m, n])))
}

/// `value` plus a tensor broadcast over its leading dimensions, outside any graph.
pub(crate) fn broadcast_add(value: Value, term: &Tensor) -> Result<Value> {
    match value {
        Value::Tensor(tensor) => Ok(Value::Tensor(tensor.broadcast_add(&term.detach())?)),
        Value::Storage(storage, shape) => {
            let layout = Layout::contiguous(shape.clone());
            let (term, term_layout) = term.storage_and_layout();
            let term_layout = term_layout.broadcast_as(shape.clone())?;
            let sum = on_same_backend!(&storage, &*term, |a, b| a.binary_impl::<Add>(b, &layout, &term_layout)?);
            Ok(Value::Storage(sum, shape))
        }
    }
}
