//! Joining a value to the inputs it was computed from.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::candle::Output;
use super::node::{Input, Node};
use super::paused::only_noted;
use super::value::Value;

/// The gradient of an operator with `N` inputs. The implementor holds, detached, what it saved for the backward.
pub(crate) trait Backward<const N: usize>: Send + Sync + 'static {
    /// The operator's name in error messages.
    const NAME: &'static str;

    /// Whether `backward` reads the elements of the output. Where it does not the output is freed with its last consumer,
    /// and `backward` gets zeros of the same shape that take no memory.
    const READS_OUTPUT: bool = true;

    /// The gradients of the inputs, given the operator's output and the gradient of that output, both detached and the
    /// latter contiguous. An input that is not `wanted` may be answered with `None`.
    fn backward(&self, output: &Tensor, grad: &Tensor, wanted: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// The gradients of an operator's tracked inputs, however many there are.
pub(crate) trait Gradients: Send + Sync + 'static {
    /// One gradient for each tracked input, in their order.
    fn gradients(&self, output: &Tensor, grad: &Tensor) -> Result<Vec<Tensor>>;
}

/// Makes `value` a tensor whose gradient reaches those `inputs` that are tracked, and no other tensor.
pub(crate) fn join<const N: usize, B: Backward<N>>(
    inputs: [Option<&Tensor>; N],
    value: Value,
    backward: B,
) -> Result<Tensor> {
    let wanted = inputs.map(|input| input.is_some_and(is_wanted));
    let tracked = inputs.into_iter().zip(wanted).filter_map(|(input, wanted)| input.filter(|_| wanted));
    let tracked: Vec<&Tensor> = tracked.collect();
    join_tracked(B::NAME, &tracked, value, B::READS_OUTPUT, Box::new(OfWanted { wanted, backward }))
}

/// As [`join`], for any number of inputs.
pub(crate) fn join_all(
    name: &'static str,
    inputs: &[&Tensor],
    value: Value,
    gradients: impl Gradients,
) -> Result<Tensor> {
    let tracked: Vec<&Tensor> = inputs.iter().copied().filter(|input| is_wanted(input)).collect();
    join_tracked(name, &tracked, value, false, Box::new(gradients))
}

fn is_wanted(input: &Tensor) -> bool {
    input.track_op() && !only_noted(input)
}

fn join_tracked(
    name: &'static str,
    tracked: &[&Tensor],
    value: Value,
    reads_output: bool,
    gradients: Box<dyn Gradients>,
) -> Result<Tensor> {
    if tracked.is_empty() {
        return Ok(value.into_tensor());
    }
    record(name, tracked.iter().map(|tensor| Input::new(tensor)).collect(), value, reads_output, gradients)
}

/// The output of a new node with these inputs, at least one.
pub(super) fn record(
    name: &'static str,
    inputs: Vec<Input>,
    value: Value,
    reads_output: bool,
    gradients: Box<dyn Gradients>,
) -> Result<Tensor> {
    let (storage, shape) = value.into_storage()?;
    let like = (shape.clone(), storage.dtype(), storage.device());
    let node = Arc::new(Node::new(name, inputs, gradients, like));
    let output = Output::record(node.clone(), storage, shape)?;
    if reads_output {
        node.keep(&output);
    }
    Ok(output)
}

struct OfWanted<const N: usize, B> {
    wanted: [bool; N],
    backward: B,
}

impl<const N: usize, B: Backward<N>> Gradients for OfWanted<N, B> {
    fn gradients(&self, output: &Tensor, grad: &Tensor) -> Result<Vec<Tensor>> {
        let gradients = self.backward.backward(output, grad, self.wanted)?;
        let wanted = gradients.into_iter().zip(self.wanted).filter(|(_, wanted)| *wanted);
        let each = wanted.map(|(gradient, _)| match gradient {
            Some(gradient) => Ok(gradient),
            None => bail!("{}: the backward pass left out a gradient", B::NAME),
        });
        each.collect()
    }
}
