//! The kernels.

mod arithmetic;
mod backward;
mod cached;
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

pub(super) use self::arithmetic::{Arithmetic, Tiles};
pub(super) use self::cached::forward as cached;

use self::backward::{Gradients, Upstream};
use self::inputs::with_inputs;
use self::source::Operand;
use super::node::Attention;
use crate::cpu::{Element, dispatch_float, read, value};
use crate::graph::Value;

/// The output, and what normalises the exponentials of every query, `(batch, heads, queries, 2)`.
pub(super) fn forward(op: &Attention) -> Result<(Value, Tensor)> {
    dispatch_float!(op.name, op.q, T => forward_typed::<T>(op))
}

pub(super) fn backward(
    op: &Attention,
    output: &Tensor,
    normalisers: &Tensor,
    grad: &Tensor,
    wanted: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    dispatch_float!(op.name, op.q, T => backward_typed::<T>(op, output, normalisers, grad, wanted))
}

fn forward_typed<T: Element>(op: &Attention) -> Result<(Value, Tensor)>
where
    T::Acc: Arithmetic,
{
    let g = op.geometry;
    let mut out = vec![T::zero(); g.batch * g.heads * g.queries * g.value_dim];
    let mut normalisers = vec![[T::acc(0.0); 2]; g.batch * g.heads * g.queries];
    with_inputs::<T, _>(op, forward::KEYS, |inputs| {
        forward::forward(inputs, &mut out, &mut normalisers);
        Ok(())
    })?;
    Ok((
        value(out, g.output_shape()),
        value(normalisers.into_flattened(), (g.batch, g.heads, g.queries, 2)).into_tensor(),
    ))
}

fn backward_typed<T: Element>(
    op: &Attention,
    output: &Tensor,
    normalisers: &Tensor,
    grad: &Tensor,
    wanted: [bool; 3],
) -> Result<[Option<Tensor>; 3]>
where
    T::Acc: Arithmetic,
{
    let g = op.geometry;
    let (grad, output) =
        (Operand::of(grad, g.arrangement, g.value_dim)?, Operand::of(output, g.arrangement, g.value_dim)?);
    let normalisers = read(normalisers)?;
    let (normalisers, _) = normalisers.as_slice::<T::Acc>()?.as_chunks();
    let upstream = Upstream { grad: grad.heads::<T>()?, output: output.heads()?, normalisers };
    let Gradients { q, k, v } =
        with_inputs::<T, _>(op, keys_task::KEYS, |inputs| Ok(backward::backward(inputs, upstream, wanted)))?;
    let tensor = |elements: Option<Vec<T>>, shape| elements.map(|elements| value(elements, shape).into_tensor());
    Ok([tensor(q, g.q_shape()), tensor(k, g.k_shape()), tensor(v, g.v_shape())])
}
