//! An operation, its inputs, and how their gradients are made.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use super::join::Gradients;
use super::{deferred, registry};

/// A tracked input of a node.
#[derive(Clone)]
pub(super) enum Input {
    /// The output of another node, whose elements are not held here.
    Node { node: Arc<Node>, handle: Tensor },
    /// A variable, or the result of an operation of candle's own.
    Leaf(Tensor),
}

impl Input {
    pub(super) fn new(tensor: &Tensor) -> Self {
        match registry::get(tensor.id()) {
            Some(output) => Self::Node { node: output.node().clone(), handle: output.handle().clone() },
            None => Self::Leaf(tensor.clone()),
        }
    }

    /// What stands for it in candle's graph.
    pub(super) fn operand(&self) -> &Tensor {
        match self {
            Self::Node { handle, .. } => handle,
            Self::Leaf(tensor) => tensor,
        }
    }

    fn like(&self) -> (&Shape, DType) {
        match self {
            Self::Node { node, .. } => (&node.shape, node.dtype),
            Self::Leaf(tensor) => (tensor.shape(), tensor.dtype()),
        }
    }
}

pub(super) struct Node {
    name: &'static str,
    inputs: Vec<Input>,
    gradients: Box<dyn Gradients>,
    shape: Shape,
    dtype: DType,
    device: Device,
    /// The output without its graph, if the backward reads its elements.
    output: OnceLock<Tensor>,
    /// Gradients of the output that wait for candle to reach this node, by the thread whose pass they belong to.
    arrived: Mutex<HashMap<ThreadId, Vec<Tensor>>>,
}

impl Node {
    /// `like` is what the output will be: its shape, dtype and device.
    pub(super) fn new(
        name: &'static str,
        inputs: Vec<Input>,
        gradients: Box<dyn Gradients>,
        (shape, dtype, device): (Shape, DType, Device),
    ) -> Self {
        Self { name, inputs, gradients, shape, dtype, device, output: OnceLock::new(), arrived: Mutex::default() }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Holds the output's elements for the backward.
    pub(super) fn keep(&self, output: &Tensor) {
        self.output.get_or_init(|| output.detach());
    }

    /// The gradients of the inputs, in their order, for the gradient of the output.
    pub(super) fn pull(&self, grad: &Tensor) -> Result<Vec<Tensor>> {
        let grad = grad.detach().contiguous()?;
        let gradients = match self.output.get() {
            Some(output) => self.gradients.gradients(output, &grad)?,
            // Of an output that nobody holds the shape is all there is: one zero, repeated.
            None => {
                let shape_only = Tensor::zeros((), self.dtype, &self.device)?.broadcast_as(&self.shape)?;
                self.gradients.gradients(&shape_only, &grad)?
            }
        };
        if gradients.len() != self.inputs.len() {
            bail!("{}: {} gradients for {} tracked inputs", self.name, gradients.len(), self.inputs.len());
        }
        for (i, (gradient, input)) in gradients.iter().zip(&self.inputs).enumerate() {
            let (shape, dtype) = input.like();
            if gradient.shape() != shape || gradient.dtype() != dtype {
                let (is, should) = (gradient.dtype().as_str(), dtype.as_str());
                let (is_shape, should_shape) = (gradient.dims(), shape.dims());
                bail!(
                    "{}: the gradient of tracked input {i} is {is} {is_shape:?}, expected {should} {should_shape:?}",
                    self.name
                );
            }
        }
        Ok(gradients)
    }

    /// A part of the output's gradient, from a node that candle has reached.
    pub(super) fn arrive(&self, grad: Tensor) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.entry(thread::current().id()).or_default().push(grad);
    }

    /// The last `count` parts of the output's gradient. Any before them are left from a pass that failed half way.
    pub(super) fn collect(&self, count: usize) -> Result<Vec<Tensor>> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this_thread = arrived.get_mut(&thread::current().id());
        match of_this_thread {
            Some(parts) if count > 0 && count <= parts.len() => Ok(parts.split_off(parts.len() - count)),
            parts => bail!("{}: {count} gradients of {}", self.name, parts.map_or(0, |parts| parts.len())),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        deferred::release(mem::take(&mut self.inputs));
    }
}
