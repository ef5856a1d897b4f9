//! Sums and means of losses.

use candle_core::{Result, Shape, Tensor, WithDType};

use super::NAME;
use crate::cpu::{Element, dispatch_float, read, value};
use crate::graph::{Backward, Value, join};

/// The sum of all losses divided by `divisor`: a scalar of their dtype, added up in f64.
pub(super) fn sum_divided(losses: &Tensor, divisor: f64) -> Result<Tensor> {
    let saved = SumDivided { shape: losses.shape().clone(), divisor };
    let detached = losses.detach().contiguous()?;
    let sum =
        if losses.device().is_cpu() { cpu(&detached, divisor)? } else { Value::Tensor(composed(&detached, divisor)?) };
    join([Some(losses)], sum, saved)
}

fn cpu(losses: &Tensor, divisor: f64) -> Result<Value> {
    dispatch_float!(NAME, losses, T => {
        let losses = read(losses)?;
        let sum: f64 = losses.as_slice::<T>()?.iter().map(|loss| loss.to_f64()).sum();
        Ok(value(vec![T::narrow(T::acc(sum / divisor))], ()))
    })
}

/// The specification, and the path of devices without a kernel.
fn composed(losses: &Tensor, divisor: f64) -> Result<Tensor> {
    losses.sum_all()? / divisor
}

struct SumDivided {
    shape: Shape,
    divisor: f64,
}

impl Backward<1> for SumDivided {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        if !grad.device().is_cpu() {
            return Ok([Some((grad / self.divisor)?.broadcast_as(&self.shape)?.contiguous()?)]);
        }
        dispatch_float!(NAME, grad, T => {
            let grad = read(grad)?;
            let each = grad.as_slice::<T>()?.iter().map(|grad| T::narrow(T::acc(grad.to_f64() / self.divisor)));
            let each = each.cycle().take(self.shape.elem_count()).collect::<Vec<T>>();
            Ok([Some(value(each, self.shape.clone()).into_tensor())])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, positions| {
            let losses = sample((2, positions), 0, dtype);
            assert_same_value(cpu(&losses, 3.0), composed(&losses, 3.0), tolerance * positions as f64);
            Ok(())
        });
    }
}
