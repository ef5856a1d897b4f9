//! The graph of the operators: joins a value computed outside candle's graph to its inputs, with a hand-written backward.
//!
//! candle computes and keeps a gradient for every operand of a recorded operation, frozen operands included, and keeps
//! the elements of every operand. Here only the inputs that are tracked are operands; whatever else the backward needs
//! is held, detached, by the operator itself. So no frozen tensor ever gets an entry in the `GradStore`, no gradient is
//! computed that nobody wants, and a result that no backward reads is freed as soon as its consumers have run.
//!
//! An operation is a [`node::Node`] and two tensors of candle's graph. The *handle*, a scalar, has the inputs for operands:
//! the handle of an input that is one of our own outputs, and otherwise the input itself. The *output*, which the caller
//! gets, has the handle for its one operand. candle's own `backward` finds its way along the handles: what it adds up there
//! is the number of gradients that have arrived, the gradients themselves go from node to node. [`fn@backward`] needs none
//! of that: it walks the nodes.

mod backward;
mod candle;
mod deferred;
mod join;
mod node;
mod paused;
mod registry;
mod sum;
#[cfg(test)]
mod tests;
mod value;

pub use backward::{backward, backward_with};
pub(crate) use join::{Backward, Gradients, join, join_all};
pub use paused::without_graph;
pub(crate) use paused::{is_off, only_noted, paused, resumed};
pub(crate) use value::{Value, broadcast_add, matmul};
