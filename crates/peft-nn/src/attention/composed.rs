//! Attention written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, DType, Result, Tensor};

use super::geometry::Arrangement;
use super::node::Attention;
use crate::checks::acc_dtype;
use crate::graph::{Value, matmul};
use crate::rope::rope;

pub(super) fn forward(op: &Attention) -> Result<Value> {
    let g = op.geometry;
    let (q, k, v) = operands(op)?;
    let output = matmul(&probabilities(op, &q, &k)?, &v)?.into_dtype(op.q.dtype())?;
    output.reshape((g.batch, g.heads, g.queries, g.value_dim))?.arranged(g.arrangement)
}

pub(super) fn backward(op: &Attention, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let [wants_q, wants_k, wants_v] = wanted;
    let g = op.geometry;
    let (q, k, v) = operands(op)?;
    let grad = grouped(op, &separate(op, grad, g.heads, g.value_dim)?.to_dtype(q.dtype())?)?;
    let p = probabilities(op, &q, &k)?;
    let dv = if wants_v { Some(gradient(op, matmul(&p.t()?, &grad)?, g.kv_heads)?) } else { None };
    let (mut dq, mut dk) = (None, None);
    if wants_q || wants_k {
        let dscores = scores_gradient(&p, &matmul(&grad, &v.t()?)?.into_tensor(), op.scale)?;
        if wants_q {
            dq = Some(gradient(op, matmul(&dscores, &k)?, g.heads)?);
        }
        if wants_k {
            dk = Some(gradient(op, matmul(&dscores.t()?, &q)?, g.kv_heads)?);
        }
    }
    // The rotation is undone on gradients of the inputs' dtype, as if it were an operator of its own.
    let unrotated = |gradient: Option<Tensor>| match (&op.rotary, gradient) {
        (Some((cos, sin)), Some(gradient)) => rotated(&gradient, cos, &sin.neg()?).map(Some),
        (_, gradient) => Ok(gradient),
    };
    let arranged = |gradient: Option<Tensor>| match gradient {
        Some(gradient) => Value::Tensor(gradient).arranged(g.arrangement).map(|value| Some(value.into_tensor())),
        None => Ok(None),
    };
    Ok([arranged(unrotated(dq)?)?, arranged(unrotated(dk)?)?, arranged(dv)?])
}

/// The dtype of scores and probabilities. The CPU multiplies 16-bit matrices in f32 anyway, so there the intermediates
/// are not rounded; elsewhere the matrix products run in the dtype of the inputs.
fn dtype(op: &Attention) -> DType {
    match op.q.dtype() {
        DType::BF16 | DType::F16 if op.q.device().is_cpu() => DType::F32,
        other => other,
    }
}

/// Queries `(batch, kv_heads, rows, head_dim)`, keys and values, rotated.
fn operands(op: &Attention) -> Result<(Tensor, Tensor, Tensor)> {
    let g = op.geometry;
    let mut q = separate(op, &op.q, g.heads, g.head_dim)?;
    let mut k = separate(op, &op.k, g.kv_heads, g.head_dim)?;
    let v = separate(op, &op.v, g.kv_heads, g.value_dim)?;
    if let Some((cos, sin)) = &op.rotary {
        (q, k) = (rotated(&q, cos, sin)?, rotated(&k, cos, sin)?);
    }
    let dtype = dtype(op);
    Ok((grouped(op, &q.to_dtype(dtype)?)?, k.to_dtype(dtype)?, v.to_dtype(dtype)?))
}

/// `(batch, heads, positions, width)`, contiguous.
fn separate(op: &Attention, tensor: &Tensor, heads: usize, width: usize) -> Result<Tensor> {
    match op.geometry.arrangement {
        Arrangement::Separate => tensor.contiguous(),
        Arrangement::Merged => {
            let (batch, positions, _) = tensor.dims3()?;
            tensor.reshape((batch, positions, heads, width))?.transpose(1, 2)?.contiguous()
        }
    }
}

/// The shape in which the queries of the heads that share keys are the rows of one matrix.
fn grouped(op: &Attention, tensor: &Tensor) -> Result<Tensor> {
    let g = op.geometry;
    tensor.reshape((g.batch, g.kv_heads, g.group() * g.queries, tensor.dim(D::Minus1)?))
}

/// A gradient in the inputs' dtype, with a dimension for heads.
fn gradient(op: &Attention, value: Value, heads: usize) -> Result<Tensor> {
    let g = op.geometry;
    let value = value.into_dtype(op.q.dtype())?.into_tensor();
    let width = value.dim(D::Minus1)?;
    value.reshape((g.batch, heads, value.elem_count() / (g.batch * heads * width).max(1), width))
}

/// Rotates positions that are the last ones of the tables.
fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let last = |table: &Tensor| {
        let (dim, positions) = (table.rank() - 2, x.dim(2)?);
        table.narrow(dim, table.dim(dim)? - positions, positions)
    };
    rope(x, &last(cos)?, &last(sin)?)
}

impl Value {
    /// From `(batch, heads, positions, width)`.
    fn arranged(self, arrangement: Arrangement) -> Result<Self> {
        match arrangement {
            Arrangement::Separate => Ok(self),
            Arrangement::Merged => {
                let tensor = self.into_tensor();
                let (batch, heads, positions, width) = tensor.dims4()?;
                Ok(Self::Tensor(tensor.transpose(1, 2)?.reshape((batch, positions, heads * width))?))
            }
        }
    }
}

/// `softmax(scale * q k^T)`; hidden keys get zero, and so does every key of a row that sees none.
fn probabilities(op: &Attention, q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let g = op.geometry;
    let scores = matmul(q, &k.t()?)?.into_tensor();
    let scaled = (scores.to_dtype(acc_dtype(scores.dtype()))? * op.scale)?;
    let Some(visible) = op.visibility.mask(scores.device())? else {
        return normalise(&scaled)?.to_dtype(scores.dtype());
    };
    let scaled = scaled.reshape((g.batch, g.heads, g.queries, g.keys))?;
    let visible = visible.broadcast_as(scaled.shape())?;
    // The lowest finite value: a row that sees no key is then uniform and not NaN, before it is set to zero.
    let lowest = if scaled.dtype() == DType::F64 { f64::MIN } else { f64::from(f32::MIN) };
    let lowest = Tensor::new(lowest, scores.device())?.to_dtype(scaled.dtype())?.broadcast_as(scaled.shape())?;
    let p = normalise(&visible.where_cond(&scaled, &lowest)?)?;
    visible.where_cond(&p, &p.zeros_like()?)?.to_dtype(scores.dtype())?.reshape(scores.shape())
}

fn normalise(scores: &Tensor) -> Result<Tensor> {
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// `scale * p * (grad - sum(grad * p))`.
fn scores_gradient(p: &Tensor, grad: &Tensor, scale: f64) -> Result<Tensor> {
    let dtype = acc_dtype(grad.dtype());
    let (p, g) = (p.to_dtype(dtype)?, grad.to_dtype(dtype)?);
    let dot = (&p * &g)?.sum_keepdim(D::Minus1)?;
    ((p * g.broadcast_sub(&dot)?)? * scale)?.to_dtype(grad.dtype())
}
