//! Multiplication by constants, such as a dropout mask.

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join};

const NAME: &str = "mul-frozen";

/// `x * factors`, element by element, where `factors` are constants of `x`'s shape and dtype: no gradient reaches them.
///
/// candle's own product would compute and keep one, even for an untracked mask.
pub fn mul_frozen(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "factors tensor", factors, x.dtype())?;
    ensure_shape(NAME, "factors tensor", factors, x.dims())?;
    let factors = factors.detach();
    join([Some(x)], Value::Tensor((x.detach() * &factors)?), MulFrozen { factors })
}

struct MulFrozen {
    factors: Tensor,
}

impl Backward<1> for MulFrozen {
    const NAME: &'static str = NAME;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some((grad * &self.factors)?)])
    }
}
