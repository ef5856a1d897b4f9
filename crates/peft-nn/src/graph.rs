//! Joins a value computed outside candle's graph to its inputs, with a hand-written backward.
//!
//! candle computes and keeps a gradient for every operand of a recorded operation, frozen operands included. Here only
//! the inputs that are tracked become operands; whatever else the backward needs is held, detached, by the operator
//! itself. So no frozen tensor ever gets an entry in the `GradStore`, and no gradient is computed that nobody wants.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::op::{Add, BackpropOp};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, bail,
};

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

    fn into_storage(self) -> Result<(Storage, Shape)> {
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

/// The gradient of an operator with `N` inputs. The implementor holds, detached, what it saved for the backward.
pub(crate) trait Backward<const N: usize>: Send + Sync + 'static {
    /// The operator's name in error messages.
    const NAME: &'static str;

    /// The gradients of the inputs, given the operator's output and the gradient of that output, both detached and the
    /// latter contiguous. An input that is not `wanted` may be answered with `None`.
    fn backward(&self, output: &Tensor, grad: &Tensor, wanted: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// Makes `value` a tensor whose gradient reaches those `inputs` that are tracked, and no other tensor.
pub(crate) fn join<const N: usize, B: Backward<N>>(
    inputs: [Option<&Tensor>; N],
    value: Value,
    backward: B,
) -> Result<Tensor> {
    let wanted = inputs.map(|input| input.is_some_and(Tensor::track_op));
    let operands: Vec<&Tensor> = inputs.into_iter().flatten().filter(|input| input.track_op()).collect();
    match operands[..] {
        [] => Ok(value.into_tensor()),
        [a] => a.apply_op1(Node::new(value, wanted, backward)?),
        [a, b] => a.apply_op2(b, Node::new(value, wanted, backward)?),
        [a, b, c] => a.apply_op3(b, c, Node::new(value, wanted, backward)?),
        _ => bail!("{}: candle joins at most three inputs, got {}", B::NAME, operands.len()),
    }
}

struct Node<const N: usize, B> {
    /// Taken by the one call of the forward pass.
    value: Mutex<Option<(Storage, Shape)>>,
    wanted: [bool; N],
    backward: B,
}

impl<const N: usize, B: Backward<N>> Node<N, B> {
    fn new(value: Value, wanted: [bool; N], backward: B) -> Result<Self> {
        Ok(Self { value: Mutex::new(Some(value.into_storage()?)), wanted, backward })
    }

    fn take(&self) -> Result<(Storage, Shape)> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok(value),
            None => bail!("{}: the forward pass ran twice", B::NAME),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            (other, _) => bail!("{}: an input is on the cpu but the result is on {:?}", B::NAME, other.device()),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            (other, _) => bail!("{}: an input is on cuda but the result is on {:?}", B::NAME, other.device()),
        }
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.take()? {
            (Storage::Metal(storage), shape) => Ok((storage, shape)),
            (other, _) => bail!("{}: an input is on metal but the result is on {:?}", B::NAME, other.device()),
        }
    }

    /// The gradients of the operands: of the wanted inputs, in their order.
    fn gradients(&self, output: &Tensor, grad: &Tensor) -> Result<impl Iterator<Item = Option<Tensor>>> {
        let grad = grad.detach().contiguous()?;
        let gradients = self.backward.backward(&output.detach(), &grad, self.wanted)?;
        for (gradient, wanted) in gradients.iter().zip(self.wanted) {
            if wanted && gradient.is_none() {
                bail!("{}: the backward pass left out a gradient", B::NAME);
            }
        }
        Ok(gradients.into_iter().zip(self.wanted).filter_map(|(gradient, wanted)| wanted.then_some(gradient)))
    }
}

impl<const N: usize, B: Backward<N>> CustomOp1 for Node<N, B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, _: &Tensor, output: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(output, grad)?.next().flatten())
    }
}

impl<const N: usize, B: Backward<N>> CustomOp2 for Node<N, B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, output: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(output, grad)?;
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl<const N: usize, B: Backward<N>> CustomOp3 for Node<N, B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(output, grad)?;
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{Device, Var};

    use super::*;

    struct Scale;

    impl Backward<1> for Scale {
        const NAME: &'static str = "scale";

        fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            Ok([Some((grad * 2.0)?)])
        }
    }

    struct Forgetful;

    impl Backward<1> for Forgetful {
        const NAME: &'static str = "forgetful";

        fn backward(&self, _output: &Tensor, _grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            Ok([None])
        }
    }

    #[test]
    fn a_view_of_a_larger_tensor_is_joined_by_its_own_elements() {
        let x = Var::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let column = Tensor::new(&[[9f32, 2.], [9., 4.]], &Device::Cpu).unwrap().narrow(1, 1, 1).unwrap();
        let value = Value::Tensor(column.squeeze(1).unwrap());
        let y = join([Some(&x)], value, Scale).unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [2., 4.]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), [2., 2.]);
    }

    #[test]
    fn a_gradient_that_is_wanted_but_missing_is_an_error() {
        let x = Var::new(&[1f32], &Device::Cpu).unwrap();
        let y = join([Some(&x)], Value::Tensor(x.detach()), Forgetful).unwrap();
        let error = y.backward().unwrap_err().to_string();
        assert!(error.contains("forgetful: the backward pass left out a gradient"), "{error}");
    }
}
