//! The kernels.

mod arithmetic;
mod backward;
mod few;
mod forward;
mod inputs;
mod keys_task;
mod mask;
mod pack;
mod rows;
mod scores;
mod shared;
mod source;
mod tasks;

use candle_core::{Result, Tensor};

use self::arithmetic::Arithmetic;
use self::backward::{Gradients, Upstream};
use self::inputs::with_inputs;
use self::source::Operand;
use super::node::Attention;
use crate::cpu::{Element, dispatch_float, read, value};
use crate::graph::Value;

/// The output, and the log-sum-exp of the scores of every query, `(batch, heads, queries)`.
pub(super) fn forward(op: &Attention) -> Result<(Value, Tensor)> {
    dispatch_float!(op.name, op.q, T => forward_typed::<T>(op))
}

pub(super) fn backward(
    op: &Attention,
    output: &Tensor,
    log_sums: &Tensor,
    grad: &Tensor,
    wanted: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    dispatch_float!(op.name, op.q, T => backward_typed::<T>(op, output, log_sums, grad, wanted))
}

fn forward_typed<T: Element>(op: &Attention) -> Result<(Value, Tensor)>
where
    T::Acc: Arithmetic,
{
    let g = op.geometry;
    let mut out = vec![T::zero(); g.batch * g.heads * g.queries * g.value_dim];
    let mut log_sums = vec![T::acc(0.0); g.batch * g.heads * g.queries];
    with_inputs::<T, _>(op, forward::KEYS, |inputs| {
        forward::forward(inputs, &mut out, &mut log_sums);
        Ok(())
    })?;
    Ok((value(out, g.output_shape()), value(log_sums, (g.batch, g.heads, g.queries)).into_tensor()))
}

fn backward_typed<T: Element>(
    op: &Attention,
    output: &Tensor,
    log_sums: &Tensor,
    grad: &Tensor,
    wanted: [bool; 3],
) -> Result<[Option<Tensor>; 3]>
where
    T::Acc: Arithmetic,
{
    let g = op.geometry;
    let (grad, output) =
        (Operand::of(grad, g.arrangement, g.value_dim)?, Operand::of(output, g.arrangement, g.value_dim)?);
    let log_sums = read(log_sums)?;
    let upstream = Upstream { grad: grad.heads::<T>()?, output: output.heads()?, log_sums: log_sums.as_slice()? };
    let Gradients { q, k, v } =
        with_inputs::<T, _>(op, keys_task::KEYS, |inputs| Ok(backward::backward(inputs, upstream, wanted)))?;
    let tensor = |elements: Option<Vec<T>>, shape| elements.map(|elements| value(elements, shape).into_tensor());
    Ok([tensor(q, g.q_shape()), tensor(k, g.k_shape()), tensor(v, g.v_shape())])
}
