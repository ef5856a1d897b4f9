//! Division by constants, such as the norms that DoRA does not differentiate.

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::cpu::simd::Quotient;
use crate::cpu::{dispatch_float, map, read, value};
use crate::graph::{Backward, Value, join};

const NAME: &str = "div-frozen";

/// `x / divisors`, element by element, where `divisors` are constants of `x`'s shape and dtype: no gradient reaches them.
///
/// Unlike a product with reciprocals it is exactly 1 where both are equal.
pub fn div_frozen(x: &Tensor, divisors: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "divisors tensor", divisors, x.dtype())?;
    ensure_shape(NAME, "divisors tensor", divisors, x.dims())?;
    let divisors = divisors.detach().contiguous()?;
    let value = over(&x.detach().contiguous()?, &divisors)?;
    join([Some(x)], value, DivFrozen { divisors })
}

struct DivFrozen {
    divisors: Tensor,
}

impl Backward<1> for DivFrozen {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(over(grad, &self.divisors)?.into_tensor())])
    }
}

/// Of contiguous tensors.
fn over(x: &Tensor, divisors: &Tensor) -> Result<Value> {
    if !x.device().is_cpu() {
        return Ok(Value::Tensor(composed(x, divisors)?));
    }
    dispatch_float!(NAME, x, T => {
        let (elements, divisors) = (read(x)?, read(divisors)?);
        let [y] = map(Quotient, [elements.as_slice::<T>()?, divisors.as_slice::<T>()?]);
        Ok(value(y, x.shape()))
    })
}

/// The specification, and the path of devices without a kernel.
fn composed(x: &Tensor, divisors: &Tensor) -> Result<Tensor> {
    x / divisors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_bits_on_each_arch, assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, _, width| {
            let (x, divisors) = (sample((3, width), 0, dtype), sample((3, width), 1, dtype));
            assert_same_value(over(&x, &divisors), composed(&x, &divisors), 0.0);
            assert_same_bits_on_each_arch(|| Ok(vec![over(&x, &divisors)?.into_tensor()]));
            Ok(())
        });
    }
}
