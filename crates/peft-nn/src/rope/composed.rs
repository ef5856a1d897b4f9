//! The rotation written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{D, Result, Tensor};

use super::{Direction, Rotation};
use crate::checks::acc_dtype;

pub(super) fn rotate(op: &Rotation, x: &Tensor, direction: Direction) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let dtype = x.dtype();
    let x = x.to_dtype(acc_dtype(dtype))?;
    let (x1, x2) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    // (seq, half) broadcasts over batch and heads, (batch, seq, half) over the heads once they have a dimension.
    let over_heads = |table: &Tensor| if table.rank() == 3 { table.unsqueeze(1) } else { Ok(table.clone()) };
    let (cos, sin) = (over_heads(&op.cos)?, over_heads(&op.sin)?);
    let sin = if direction == Direction::Forward { sin } else { sin.neg()? };
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x1.broadcast_mul(&sin)? + x2.broadcast_mul(&cos)?)?;
    Tensor::cat(&[y1, y2], D::Minus1)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{DTYPES, assert_same_value, sample};

    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        for (dtype, tolerance) in DTYPES {
            let x = sample((2, 3, 4, 6), 0, dtype);
            for angles in [sample((4, 3), 1, acc_dtype(dtype)), sample((2, 4, 3), 1, acc_dtype(dtype))] {
                let op = Rotation { cos: angles.cos()?, sin: angles.sin()? };
                for direction in [Direction::Forward, Direction::Inverse] {
                    assert_same_value(cpu::rotate(&op, &x, direction), rotate(&op, &x, direction), tolerance);
                }
            }
        }
        Ok(())
    }
}
