//! Scaled dot-product attention with grouped queries.

mod options;
mod visibility;

use candle_core::{DType, Result, Tensor, bail};

pub use options::AttentionOptions;
pub(crate) use visibility::Visibility;

use crate::checks::{ensure_dtype, ensure_float};
use crate::graph::{Backward, Value, join, matmul};
use crate::softmax::{probabilities, scores_gradient};

const NAME: &str = "attention";

/// `softmax(scale * q k^T) v`, over the keys that `options` lets each query see.
///
/// `q` is `(batch, heads, queries, head_dim)`, `k` is `(batch, kv_heads, keys, head_dim)` and `v` is `(batch, kv_heads,
/// keys, value_dim)`, all of one dtype; the result is `(batch, heads, queries, value_dim)`. `heads` is a multiple of
/// `kv_heads`: head `h` reads the keys and values of head `h / (heads / kv_heads)` (grouped-query attention), which are
/// not repeated in memory. The softmax runs in f32 for 16-bit types. A query that sees no key gives zeros.
///
/// Nothing as large as the scores is kept for the backward pass, which computes them again. The gradient reaches those
/// of `q`, `k` and `v` that are tracked, and never a mask.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let dims = Dims::of(q, k, v)?;
    ensure_float(NAME, "query", q)?;
    ensure_dtype(NAME, "key", k, q.dtype())?;
    ensure_dtype(NAME, "value", v, q.dtype())?;
    let visibility = Visibility::new(options, dims.batch, dims.queries, dims.keys)?;
    let scale = options.scale.unwrap_or_else(|| 1.0 / (dims.head_dim as f64).sqrt());

    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let saved = Attention { q: q.detach(), k: k.detach(), v: v.detach(), dims, scale, visibility };
    let value = saved.forward()?;
    join([Some(&q), Some(&k), Some(&v)], value, saved)
}

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
}

impl Dims {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let (&[batch, heads, queries, head_dim], &[.., kv_heads, keys, _], &[.., value_dim]) =
            (q.dims(), k.dims(), v.dims())
        else {
            bail!("{NAME}: q, k and v have four dimensions, got {:?}, {:?}, {:?}", q.dims(), k.dims(), v.dims())
        };
        if k.dims() != [batch, kv_heads, keys, head_dim] || v.dims() != [batch, kv_heads, keys, value_dim] {
            bail!("{NAME}: q, k and v do not fit together: {:?}, {:?}, {:?}", q.dims(), k.dims(), v.dims());
        }
        if kv_heads == 0 || heads % kv_heads != 0 {
            bail!("{NAME}: {heads} query heads are not a multiple of {kv_heads} key heads");
        }
        Ok(Self { batch, heads, kv_heads, queries, keys, head_dim, value_dim })
    }

    /// The shape in which the queries of the heads that share keys are the rows of one matrix.
    fn grouped(&self, width: usize) -> (usize, usize, usize, usize) {
        (self.batch, self.kv_heads, self.heads / self.kv_heads * self.queries, width)
    }
}

struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dims: Dims,
    scale: f64,
    visibility: Option<Visibility>,
}

impl Attention {
    /// The dtype of scores and probabilities. The CPU multiplies 16-bit matrices in f32 anyway, so there the
    /// intermediates are not rounded; elsewhere the matrix products run in the dtype of the inputs.
    fn dtype(&self) -> DType {
        match self.q.dtype() {
            DType::BF16 | DType::F16 if self.q.device().is_cpu() => DType::F32,
            other => other,
        }
    }

    fn queries(&self) -> Result<Tensor> {
        self.q.reshape(self.dims.grouped(self.dims.head_dim))?.to_dtype(self.dtype())
    }

    fn probabilities(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scores = matmul(q, &k.t()?)?.into_tensor();
        Ok(probabilities(&scores, self.scale, self.visibility.as_ref())?.into_tensor())
    }

    fn forward(&self) -> Result<Value> {
        let Dims { batch, heads, queries, value_dim, .. } = self.dims;
        let p = self.probabilities(&self.queries()?, &self.k.to_dtype(self.dtype())?)?;
        let output = matmul(&p, &self.v.to_dtype(self.dtype())?)?.reshape((batch, heads, queries, value_dim))?;
        output.into_dtype(self.q.dtype())
    }
}

impl Backward<3> for Attention {
    const NAME: &'static str = NAME;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        let [wants_q, wants_k, wants_v] = wanted;
        let dtype = self.dtype();
        let (q, k, v) = (self.queries()?, self.k.to_dtype(dtype)?, self.v.to_dtype(dtype)?);
        let grad = grad.reshape(self.dims.grouped(self.dims.value_dim))?.to_dtype(dtype)?;
        let p = self.probabilities(&q, &k)?;
        let dv = if wants_v { Some(matmul(&p.t()?, &grad)?.into_dtype(self.v.dtype())?.into_tensor()) } else { None };
        let (mut dq, mut dk) = (None, None);
        if wants_q || wants_k {
            let dscores = scores_gradient(&p, &matmul(&grad, &v.t()?)?.into_tensor(), self.scale)?;
            if wants_q {
                dq = Some(matmul(&dscores, &k)?.reshape(self.q.shape())?.into_dtype(self.q.dtype())?.into_tensor());
            }
            if wants_k {
                dk = Some(matmul(&dscores.t()?, &q)?.into_dtype(self.k.dtype())?.into_tensor());
            }
        }
        Ok([dq, dk, dv])
    }
}
