use candle_core::{Result, Tensor};

use super::{Direction, NAME, Rotation};
use crate::cpu::{Element, dispatch_float, for_each_row, read, value};
use crate::graph::Value;

pub(super) fn rotate(op: &Rotation, x: &Tensor, direction: Direction) -> Result<Value> {
    dispatch_float!(NAME, x, T => rotate_typed::<T>(op, x, direction))
}

fn rotate_typed<T: Element>(op: &Rotation, x: &Tensor, direction: Direction) -> Result<Value> {
    let (_, heads, seq, head_dim) = x.dims4()?;
    let half = head_dim / 2;
    let per_batch = op.cos.rank() == 3;
    let (cos, sin, elements) = (read(&op.cos)?, read(&op.sin)?, read(x)?);
    let (cos, sin) = (cos.as_slice::<T::Acc>()?, sin.as_slice::<T::Acc>()?);
    let elements = elements.as_slice::<T>()?;
    let sign = T::acc(if direction == Direction::Forward { 1.0 } else { -1.0 });
    let mut y = vec![T::zero(); elements.len()];
    for_each_row(&mut y, head_dim, |row, y| {
        let position = row % seq + if per_batch { row / (heads * seq) * seq } else { 0 };
        let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
        let (x1, x2) = elements[row * head_dim..][..head_dim].split_at(half);
        let (y1, y2) = y.split_at_mut(half);
        for i in 0..half {
            let (x1, x2, cos, sin) = (x1[i].widen(), x2[i].widen(), cos[i], sin[i] * sign);
            y1[i] = T::narrow(x1 * cos - x2 * sin);
            y2[i] = T::narrow(x1 * sin + x2 * cos);
        }
    });
    Ok(value(y, x.shape()))
}
