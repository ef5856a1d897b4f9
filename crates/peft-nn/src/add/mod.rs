//! Addition of equal shapes, such as that of a block's output to the residual stream.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join};

const NAME: &str = "add";

/// `x + y`, element by element, of tensors of one shape and dtype. Nothing is kept for the backward pass; the gradient reaches whichever
/// of the two are tracked, without a copy.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "second operand", y, x.dtype())?;
    ensure_shape(NAME, "second operand", y, x.dims())?;
    let (a, b) = (x.detach().contiguous()?, y.detach().contiguous()?);
    let value = if x.device().is_cpu() { cpu::forward(&a, &b)? } else { Value::Tensor(composed::forward(&a, &b)?) };
    join([Some(x), Some(y)], value, Add)
}

struct Add;

impl Backward<2> for Add {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok(wanted.map(|wanted| wanted.then(|| grad.clone())))
    }
}
