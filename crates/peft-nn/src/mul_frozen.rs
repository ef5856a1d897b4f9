//! Multiplication by constants, such as a dropout mask.

use candle_core::{Result, Tensor};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::cpu::simd::Product;
use crate::cpu::{dispatch_float, map, read, value};
use crate::graph::{Backward, Value, join};

const NAME: &str = "mul-frozen";

/// `x * factors`, element by element, where `factors` are constants of `x`'s shape and dtype: no gradient reaches them.
///
/// candle's own product would compute and keep one, even for an untracked mask.
pub fn mul_frozen(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "factors tensor", factors, x.dtype())?;
    ensure_shape(NAME, "factors tensor", factors, x.dims())?;
    let factors = factors.detach().contiguous()?;
    let value = times(&x.detach().contiguous()?, &factors)?;
    join([Some(x)], value, MulFrozen { factors })
}

struct MulFrozen {
    factors: Tensor,
}

impl Backward<1> for MulFrozen {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(times(grad, &self.factors)?.into_tensor())])
    }
}

/// Of contiguous tensors.
fn times(x: &Tensor, factors: &Tensor) -> Result<Value> {
    if !x.device().is_cpu() {
        return Ok(Value::Tensor(composed(x, factors)?));
    }
    dispatch_float!(NAME, x, T => {
        let (elements, factors) = (read(x)?, read(factors)?);
        let [y] = map(Product, [elements.as_slice::<T>()?, factors.as_slice::<T>()?]);
        Ok(value(y, x.shape()))
    })
}

/// The specification, and the path of devices without a kernel.
fn composed(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    x * factors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_bits_on_each_arch, assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, _, width| {
            let (x, factors) = (sample((3, width), 0, dtype), sample((3, width), 1, dtype));
            assert_same_value(times(&x, &factors), composed(&x, &factors), 0.0);
            assert_same_bits_on_each_arch(|| Ok(vec![times(&x, &factors)?.into_tensor()]));
            Ok(())
        });
    }
}
