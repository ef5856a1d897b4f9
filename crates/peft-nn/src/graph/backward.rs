//! A backward pass over our own nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, TensorId, bail};

use super::join::{Gradients, record};
use super::node::{Input, Node};
use super::sum::Sum;
use super::value::Value;

const NAME: &str = "backward";

/// The gradients of the variables that `loss` was computed from, as `loss.backward()` gives them, in less time and memory.
///
/// Along the operators of this crate the pass does not recurse, hands gradients on without copies, adds where several meet
/// on all cores, and drops each as soon as it was used. What lies behind an operation of candle's own (a view, `a + b`) is
/// left to candle, whose recursion is as deep as that part of the graph; a loss that is such an operation leaves all of it.
/// Every path counts once. A loss that is not a scalar counts as the sum of its elements.
///
/// The result has the gradients of variables and no other entries; it is empty when `loss` depends on none.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use peft_nn::{WeightLayout, linear};
///
/// let weight = Var::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let y = linear(&Tensor::new(&[[1f32, -1.]], &Device::Cpu)?, &weight, WeightLayout::OutIn, None)?;
/// let grads = peft_nn::backward(&y)?;
/// let dw = grads.get(&weight).ok_or_else(|| candle_core::Error::msg("no gradient"))?;
/// assert_eq!(dw.to_vec2::<f32>()?, [[1., -1.], [1., -1.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// When an operator cannot compute a gradient.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    backward_with(loss, &loss.ones_like()?)
}

/// The vector-Jacobian product: [`fn@backward`] of the sum of `output * grad`, of which neither product nor sum are computed.
///
/// # Errors
/// As [`fn@backward`], and when `grad` differs from `output` in shape or dtype.
pub fn backward_with(output: &Tensor, grad: &Tensor) -> Result<GradStore> {
    if grad.shape() != output.shape() {
        bail!("{NAME}: the gradient has shape {:?}, expected {:?}", grad.dims(), output.dims());
    }
    if grad.dtype() != output.dtype() {
        bail!("{NAME}: the gradient is {} but the output is {}", grad.dtype().as_str(), output.dtype().as_str());
    }
    let mut found = Found::default();
    if output.track_op() {
        let grad = Sum::Lent(grad.detach());
        match Input::new(output) {
            Input::Node { node, .. } => Pass::new(node)?.run(grad, &mut found)?,
            leaf => found.add(&leaf, grad)?,
        }
    }
    found.finish()
}

/// The nodes that a root was computed from, each before those it was computed from.
struct Pass {
    order: Vec<Arc<Node>>,
    /// What stands for each in candle's graph. The root needs nothing to stand for it.
    handles: Vec<Option<Tensor>>,
    place: HashMap<*const Node, usize>,
    /// The handles of nodes that candle reaches as well. They take their whole gradient from there, once.
    beyond: HashSet<TensorId>,
}

impl Pass {
    fn new(root: Arc<Node>) -> Result<Self> {
        let mut seen = HashSet::from([Arc::as_ptr(&root)]);
        // Nodes whose inputs are being looked at, and how many of these were.
        let mut path = vec![(root, None, 0)];
        let (mut order, mut handles, mut foreign) = (vec![], vec![], vec![]);
        while let Some((node, _, looked_at)) = path.last_mut() {
            match node.inputs().get(*looked_at).cloned() {
                Some(input) => {
                    *looked_at += 1;
                    match input {
                        Input::Node { node, handle } if seen.insert(Arc::as_ptr(&node)) => {
                            path.push((node, Some(handle), 0));
                        }
                        Input::Leaf(leaf) if !leaf.is_variable() => foreign.push(Input::Leaf(leaf)),
                        _ => {}
                    }
                }
                None => {
                    if let Some((node, handle, _)) = path.pop() {
                        order.push(node);
                        handles.push(handle);
                    }
                }
            }
        }
        order.reverse();
        handles.reverse();
        let place = order.iter().enumerate().map(|(i, node)| (Arc::as_ptr(node), i)).collect();
        let beyond = if foreign.is_empty() { HashSet::new() } else { ids_behind(foreign)? };
        Ok(Self { order, handles, place, beyond })
    }

    fn run(self, grad: Sum, found: &mut Found) -> Result<()> {
        let mut sums: Vec<Option<Sum>> = self.order.iter().map(|_| None).collect();
        if let Some(root) = sums.first_mut() {
            *root = Some(grad);
        }
        for (place, (node, handle)) in self.order.iter().zip(self.handles).enumerate() {
            // A node behind candle's operations alone has none here.
            let Some(sum) = sums[place].take() else { continue };
            if let Some(handle) = handle.filter(|handle| self.beyond.contains(&handle.id())) {
                found.add(&Input::Node { node: node.clone(), handle }, sum)?;
                continue;
            }
            let gradients = node.pull(&sum.into_tensor())?;
            for (input, gradient) in node.inputs().iter().zip(gradients) {
                match input {
                    Input::Leaf(_) => found.add(input, Sum::Lent(gradient))?,
                    Input::Node { node, .. } => match self.place.get(&Arc::as_ptr(node)) {
                        Some(&place) => add(&mut sums[place], Sum::Lent(gradient))?,
                        None => bail!("{NAME}: an input was not found before"),
                    },
                }
            }
        }
        Ok(())
    }
}

/// The tensors of candle's graph that these were computed from, themselves included.
fn ids_behind(foreign: Vec<Input>) -> Result<HashSet<TensorId>> {
    let all = root(foreign, vec![])?;
    Ok(all.sorted_nodes().into_iter().map(Tensor::id).collect())
}

fn add(sum: &mut Option<Sum>, term: Sum) -> Result<()> {
    match sum {
        Some(sum) => sum.add(&term.into_tensor()),
        none => {
            *none = Some(term);
            Ok(())
        }
    }
}

/// The gradients that a pass has come to the end of.
#[derive(Default)]
struct Found {
    variables: HashMap<TensorId, Sum>,
    /// What candle goes on from: results of its own operations, and nodes behind such.
    foreign: Vec<(Input, Sum)>,
    foreign_places: HashMap<TensorId, usize>,
}

impl Found {
    fn add(&mut self, input: &Input, term: Sum) -> Result<()> {
        let id = input.operand().id();
        if let Input::Leaf(leaf) = input
            && leaf.is_variable()
        {
            return self.add_variable(id, term);
        }
        match self.foreign_places.get(&id) {
            Some(&place) => self.foreign[place].1.add(&term.into_tensor()),
            None => {
                self.foreign_places.insert(id, self.foreign.len());
                self.foreign.push((input.clone(), term));
                Ok(())
            }
        }
    }

    fn add_variable(&mut self, id: TensorId, term: Sum) -> Result<()> {
        let mut sum = self.variables.remove(&id);
        add(&mut sum, term)?;
        self.variables.extend(sum.map(|sum| (id, sum)));
        Ok(())
    }

    /// Has candle do the rest.
    fn finish(mut self) -> Result<GradStore> {
        if !self.foreign.is_empty() {
            let (inputs, sums): (Vec<_>, Vec<_>) = self.foreign.drain(..).unzip();
            let root = root(inputs, sums.into_iter().map(Sum::into_tensor).collect())?;
            let variables = root.sorted_nodes().into_iter().filter(|tensor| tensor.is_variable());
            let variables: Vec<_> = variables.cloned().collect();
            // It has entries for the frozen operands of candle's operations as well.
            let mut grads = root.backward()?;
            for variable in variables {
                if let Some(grad) = grads.remove(&variable) {
                    self.add_variable(variable.id(), Sum::Lent(grad))?;
                }
            }
        }
        let mut grads = GradStore::default();
        for (id, sum) in self.variables {
            grads.insert_id(id, sum.into_tensor());
        }
        Ok(grads)
    }
}

/// A scalar from which candle's `backward` hands these gradients to these inputs.
fn root(inputs: Vec<Input>, gradients: Vec<Tensor>) -> Result<Tensor> {
    let Some(device) = inputs.first().map(|input| input.operand().device().clone()) else {
        bail!("{NAME}: nothing to go on from")
    };
    let value = Value::Tensor(Tensor::zeros((), DType::F32, &device)?);
    record(NAME, inputs, value, false, Box::new(Given(gradients)))
}

struct Given(Vec<Tensor>);

impl Gradients for Given {
    fn gradients(&self, _output: &Tensor, _grad: &Tensor) -> Result<Vec<Tensor>> {
        Ok(self.0.clone())
    }
}
