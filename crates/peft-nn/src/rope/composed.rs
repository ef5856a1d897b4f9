//! The rotation written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{Result, Tensor};

use super::{Direction, RopeLayout, Rotation};
use crate::checks::acc_dtype;

pub(super) fn rotate(op: &Rotation, x: &Tensor, direction: Direction) -> Result<Tensor> {
    let (batch, heads, seq, head_dim) = x.dims4()?;
    let dtype = x.dtype();
    // The two elements of a pair lie along the dimension of `pairs`.
    let (pairs, split) = match op.layout {
        RopeLayout::Half => (3, (batch, heads, seq, 2, head_dim / 2)),
        RopeLayout::Interleaved => (4, (batch, heads, seq, head_dim / 2, 2)),
    };
    let x = x.to_dtype(acc_dtype(dtype))?.reshape(split)?;
    let (x1, x2) = (x.narrow(pairs, 0, 1)?.squeeze(pairs)?, x.narrow(pairs, 1, 1)?.squeeze(pairs)?);
    // (seq, half) broadcasts over batch and heads, (batch, seq, half) over the heads once they have a dimension.
    let over_heads = |table: &Tensor| if table.rank() == 3 { table.unsqueeze(1) } else { Ok(table.clone()) };
    let (cos, sin) = (over_heads(&op.cos)?, over_heads(&op.sin)?);
    let sin = if direction == Direction::Forward { sin } else { sin.neg()? };
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x1.broadcast_mul(&sin)? + x2.broadcast_mul(&cos)?)?;
    Tensor::stack(&[y1, y2], pairs)?.reshape((batch, heads, seq, head_dim))?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{DTYPES, assert_same_bits_on_each_arch, assert_same_value, sample};

    /// Three positions of heads of 6 and 150, and of heads that are too long for the kernel.
    #[test]
    fn the_kernel_computes_the_same() -> Result<()> {
        for (dtype, tolerance) in DTYPES {
            for half in [3, 75, 600] {
                let tables = [sample((4, half), 1, acc_dtype(dtype)), sample((2, 4, half), 1, acc_dtype(dtype))];
                for (angles, layout) in
                    tables.iter().flat_map(|t| [(t, RopeLayout::Half), (t, RopeLayout::Interleaved)])
                {
                    let op = Rotation { cos: angles.cos()?, sin: angles.sin()?, layout };
                    let x = sample((2, 3, 4, 2 * half), 0, dtype);
                    for direction in [Direction::Forward, Direction::Inverse] {
                        assert_same_value(cpu::rotate(&op, &x, direction), rotate(&op, &x, direction), tolerance);
                        assert_same_bits_on_each_arch(|| Ok(vec![cpu::rotate(&op, &x, direction)?.into_tensor()]));
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn views_are_read_where_they_lie() -> Result<()> {
        let angles = sample((4, 3), 1, candle_core::DType::F32);
        let op = Rotation { cos: angles.cos()?, sin: angles.sin()?, layout: RopeLayout::Half };
        let x = sample((2, 4, 5, 6), 0, candle_core::DType::F32);
        let views = [
            x.transpose(1, 2)?,
            x.transpose(1, 2)?.narrow(1, 1, 3)?,
            x.narrow(1, 1, 1)?.broadcast_as((2, 4, 5, 6))?.transpose(1, 2)?,
            // Not contiguous within a head.
            sample((2, 6, 4, 5), 0, candle_core::DType::F32).permute((0, 3, 2, 1))?,
        ];
        for view in views {
            let expected = cpu::rotate(&op, &view.contiguous()?, Direction::Forward)?.into_tensor();
            assert_same_value(cpu::rotate(&op, &view, Direction::Forward), Ok(expected), 0.0);
        }
        Ok(())
    }
}
