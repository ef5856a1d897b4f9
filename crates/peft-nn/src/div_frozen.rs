//! Division by constants, such as the norms that DoRA does not differentiate.

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join};

const NAME: &str = "div-frozen";

/// `x / divisors`, element by element, where `divisors` are constants of `x`'s shape and dtype: no gradient reaches them.
///
/// Unlike a product with reciprocals it is exactly 1 where both are equal.
pub fn div_frozen(x: &Tensor, divisors: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "divisors tensor", divisors, x.dtype())?;
    ensure_shape(NAME, "divisors tensor", divisors, x.dims())?;
    let divisors = divisors.detach();
    join([Some(x)], Value::Tensor((x.detach() / &divisors)?), DivFrozen { divisors })
}

struct DivFrozen {
    divisors: Tensor,
}

impl Backward<1> for DivFrozen {
    const NAME: &'static str = NAME;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some((grad / &self.divisors)?)])
    }
}
