//! Our nodes as operations of candle's graph, for candle's own `backward`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, MetalStorage, Result, Shape,
    Storage, Tensor, TensorId, bail,
};

use super::node::{Input, Node};
use super::registry;
use super::sum::Sum;
use super::value::Value;

/// The most operands that an operation of candle's graph has.
const MOST_OPERANDS: usize = 3;

/// The output of a node: an operation on the node's handle.
pub(super) struct Output {
    node: Arc<Node>,
    handle: Tensor,
    id: OnceLock<TensorId>,
}

impl Output {
    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(super) fn handle(&self) -> &Tensor {
        &self.handle
    }

    /// Puts `node` with its output's elements into candle's graph, and into the list of outputs.
    pub(super) fn record(node: Arc<Node>, storage: Storage, shape: Shape) -> Result<Tensor> {
        let handle = Handle::record(&node)?;
        let output = Arc::new(Self { node, handle, id: OnceLock::new() });
        let tensor = record(&[&output.handle], (storage, shape), output.clone())?;
        output.id.get_or_init(|| tensor.id());
        registry::insert(tensor.id(), &output);
        Ok(tensor)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(&id) = self.id.get() {
            registry::remove(id);
        }
    }
}

impl Operation for Output {
    fn name(&self) -> &'static str {
        self.node.name()
    }

    fn gradients(&self, grad: &Tensor) -> Result<Vec<Tensor>> {
        self.node.arrive(grad.clone());
        Ok(vec![one(self.node.device())?])
    }
}

/// The handle of a node: an operation on the node's inputs.
struct Handle {
    node: Arc<Node>,
    /// Which input each operand is; a bundle is none.
    operands: Vec<Option<usize>>,
    bundled: Arc<Bundled>,
}

/// The gradients of a pass that bundles pass on, by input; by the thread whose pass it is.
type Bundled = Mutex<HashMap<ThreadId, Vec<Option<Tensor>>>>;

impl Handle {
    fn record(node: &Arc<Node>) -> Result<Tensor> {
        let bundled = Arc::new(Bundled::default());
        let mut operands: Vec<(Option<usize>, Tensor)> =
            node.inputs().iter().map(Input::operand).cloned().enumerate().map(|(i, t)| (Some(i), t)).collect();
        while operands.len() > MOST_OPERANDS {
            let mut bundles = Vec::with_capacity(operands.len().div_ceil(MOST_OPERANDS));
            for members in operands.chunks(MOST_OPERANDS) {
                bundles.push((None, Bundle::record(node, members, &bundled)?));
            }
            operands = bundles;
        }
        let (operands, tensors): (Vec<_>, Vec<_>) = operands.into_iter().unzip();
        let handle = Self { node: node.clone(), operands, bundled };
        record(&tensors.iter().collect::<Vec<_>>(), scalar(node.device())?, Arc::new(handle))
    }
}

impl Operation for Handle {
    fn name(&self) -> &'static str {
        self.node.name()
    }

    fn gradients(&self, grad: &Tensor) -> Result<Vec<Tensor>> {
        let count = grad.to_scalar::<f32>()? as usize;
        let grad = Sum::of(self.node.collect(count)?)?;
        let one = one(self.node.device())?;
        let mut gradients = vec![];
        for (input, gradient) in self.node.inputs().iter().zip(self.node.pull(&grad)?) {
            gradients.push(match input {
                Input::Leaf(_) => Some(gradient),
                Input::Node { node, .. } => {
                    node.arrive(gradient);
                    Some(one.clone())
                }
            });
        }
        let own = self.operands.iter().map(|operand| match operand {
            Some(input) => gradients.get_mut(*input).and_then(Option::take).ok_or_else(|| left_out(self.name())),
            None => Ok(one.clone()),
        });
        let own = own.collect::<Result<_>>()?;
        if self.operands.contains(&None) {
            let mut bundled = self.bundled.lock().unwrap_or_else(PoisonError::into_inner);
            bundled.insert(thread::current().id(), gradients);
        }
        Ok(own)
    }
}

/// Stands for several operands of a node that has more than candle takes.
struct Bundle {
    name: &'static str,
    device: Device,
    /// Which input each operand is; a bundle is none.
    operands: Vec<Option<usize>>,
    bundled: Arc<Bundled>,
}

impl Bundle {
    fn record(node: &Node, members: &[(Option<usize>, Tensor)], bundled: &Arc<Bundled>) -> Result<Tensor> {
        let operands = members.iter().map(|(input, _)| *input).collect();
        let bundle = Self { name: node.name(), device: node.device().clone(), operands, bundled: bundled.clone() };
        let tensors: Vec<_> = members.iter().map(|(_, tensor)| tensor).collect();
        record(&tensors, scalar(node.device())?, Arc::new(bundle))
    }
}

impl Operation for Bundle {
    fn name(&self) -> &'static str {
        self.name
    }

    fn gradients(&self, _grad: &Tensor) -> Result<Vec<Tensor>> {
        let one = one(&self.device)?;
        let mut bundled = self.bundled.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this_pass = bundled.entry(thread::current().id()).or_default();
        let gradients = self.operands.iter().map(|operand| match operand {
            Some(input) => of_this_pass.get_mut(*input).and_then(Option::take).ok_or_else(|| left_out(self.name)),
            None => Ok(one.clone()),
        });
        let gradients = gradients.collect();
        if of_this_pass.iter().all(Option::is_none) {
            bundled.remove(&thread::current().id());
        }
        gradients
    }
}

fn left_out(name: &str) -> candle_core::Error {
    candle_core::Error::msg(format!("{name}: the backward pass left out a gradient"))
}

/// What each arrived gradient counts for at a handle.
fn one(device: &Device) -> Result<Tensor> {
    Tensor::ones((), DType::F32, device)
}

fn scalar(device: &Device) -> Result<(Storage, Shape)> {
    Value::Tensor(Tensor::zeros((), DType::F32, device)?).into_storage()
}

/// An operation of candle's graph.
trait Operation: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// The gradients of the operands, in their order, for the gradient of the result.
    fn gradients(&self, grad: &Tensor) -> Result<Vec<Tensor>>;
}

/// A tensor with these elements that is the result of an operation on one to three operands.
fn record(operands: &[&Tensor], value: (Storage, Shape), operation: Arc<dyn Operation>) -> Result<Tensor> {
    let op = Op { value: Mutex::new(Some(value)), operation };
    match *operands {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{}: candle joins one to three operands, got {}", op.operation.name(), operands.len()),
    }
}

struct Op {
    /// Taken by the one call of the forward pass.
    value: Mutex<Option<(Storage, Shape)>>,
    operation: Arc<dyn Operation>,
}

impl Op {
    fn take(&self) -> Result<(Storage, Shape)> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok(value),
            None => bail!("{}: the forward pass ran twice", self.operation.name()),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            (other, _) => self.misplaced("cpu", &other.device()),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            (other, _) => self.misplaced("cuda", &other.device()),
        }
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.take()? {
            (Storage::Metal(storage), shape) => Ok((storage, shape)),
            (other, _) => self.misplaced("metal", &other.device()),
        }
    }

    fn misplaced<T>(&self, input: &str, result: &Device) -> Result<T> {
        bail!("{}: an input is on {input} but the result is on {result:?}", self.operation.name())
    }

    fn gradients<const N: usize>(&self, grad: &Tensor) -> Result<[Option<Tensor>; N]> {
        let mut gradients = self.operation.gradients(grad)?.into_iter();
        Ok(std::array::from_fn(|_| gradients.next()))
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        self.operation.name()
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

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients(grad)?;
        Ok(a)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        self.operation.name()
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

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients(grad)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        self.operation.name()
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
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients(grad)?;
        Ok((a, b, c))
    }
}
