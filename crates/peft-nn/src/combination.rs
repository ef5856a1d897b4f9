//! A linear combination of constant matrices.

use candle_core::{DType, Result, Tensor, bail};

use crate::checks::{ensure_dtype, ensure_float};
use crate::cpu::{Element, dispatch_float, read, value};
use crate::graph::{Backward, Value, join};

const NAME: &str = "combination";

/// `sum_i v[i] p[i]`: TinyLoRA's matrix between the factors (arXiv:2602.04118).
///
/// `v` is `(u)` and `p` `(u, rows, columns)`, of one dtype; the result is `(rows, columns)`. The gradient reaches `v`,
/// and never the matrices.
pub fn combination(v: &Tensor, p: &Tensor) -> Result<Tensor> {
    let &[u, rows, columns] = p.dims() else {
        bail!("{NAME}: the matrices are (u, rows, columns), got {:?}", p.dims())
    };
    ensure_float(NAME, "coefficients", v)?;
    ensure_dtype(NAME, "matrices", p, v.dtype())?;
    if v.dims() != [u] {
        bail!("{NAME}: the coefficients have shape {:?}, expected {:?}", v.dims(), [u]);
    }
    let v = v.contiguous()?;
    let saved = Combination { p: p.detach().contiguous()? };
    let value = saved.forward(&v.detach())?.reshape((rows, columns))?;
    join([Some(&v)], value, saved)
}

struct Combination {
    /// `(u, rows, columns)`
    p: Tensor,
}

impl Combination {
    fn forward(&self, v: &Tensor) -> Result<Value> {
        let (u, rows, columns) = self.p.dims3()?;
        if v.device().is_cpu() && v.dtype() != DType::F64 {
            return dispatch_float!(NAME, v, T => forward_typed::<T>(v, &self.p));
        }
        let p = self.p.reshape((u, rows * columns))?;
        Ok(Value::Tensor(v.unsqueeze(0)?.matmul(&p)?))
    }
}

fn forward_typed<T: Element>(v: &Tensor, p: &Tensor) -> Result<Value> {
    let (u, rows, columns) = p.dims3()?;
    let (v, p) = (read(v)?, read(p)?);
    let (v, p) = (v.as_slice::<T>()?, p.as_slice::<T>()?);
    let mut sum = vec![T::acc(0.0); rows * columns];
    for (&v, p) in v.iter().zip(p.chunks_exact((rows * columns).max(1))) {
        sum.iter_mut().zip(p).for_each(|(sum, &p)| *sum += v.widen() * p.widen());
    }
    debug_assert_eq!(v.len(), u);
    Ok(value(sum.into_iter().map(T::narrow).collect::<Vec<_>>(), (rows, columns)))
}

fn backward_typed<T: Element>(grad: &Tensor, p: &Tensor) -> Result<Value> {
    let (u, rows, columns) = p.dims3()?;
    let (grad, p) = (read(grad)?, read(p)?);
    let (grad, p) = (grad.as_slice::<T>()?, p.as_slice::<T>()?);
    let size = rows * columns;
    let dot = |i: usize| {
        let products = grad.iter().zip(&p[i * size..][..size]).map(|(g, p)| g.widen() * p.widen());
        T::narrow(products.fold(T::acc(0.0), |sum, product| sum + product))
    };
    Ok(value((0..u).map(dot).collect::<Vec<_>>(), u))
}

impl Backward<1> for Combination {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        if grad.device().is_cpu() && grad.dtype() != DType::F64 {
            let gradient = dispatch_float!(NAME, grad, T => backward_typed::<T>(grad, &self.p))?;
            return Ok([Some(gradient.into_tensor())]);
        }
        let (u, rows, columns) = self.p.dims3()?;
        let p = self.p.reshape((u, rows * columns))?;
        Ok([Some(p.matmul(&grad.reshape((rows * columns, 1))?)?.squeeze(1)?)])
    }
}
