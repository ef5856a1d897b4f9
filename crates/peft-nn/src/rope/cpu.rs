use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::composed;
use super::{Direction, NAME, RopeLayout, Rotation};
use crate::cpu::simd::CHUNK;
use crate::cpu::{Element, Rows, Scratch, dispatch_float, map_rows, read, read_strided, value};
use crate::graph::Value;

pub(super) fn rotate(op: &Rotation, x: &Tensor, direction: Direction) -> Result<Value> {
    let (batch, heads, seq, head_dim) = x.dims4()?;
    if head_dim > CHUNK {
        // No model has such heads.
        return Ok(Value::Tensor(composed::rotate(op, &x.contiguous()?, direction)?));
    }
    let x = if x.stride()[3] == 1 { x } else { &x.contiguous()? };
    let strides = [x.stride()[0], x.stride()[1], x.stride()[2]];
    dispatch_float!(NAME, x, T => {
        type Acc = <T as Element>::Acc;
        let (cos, sin, elements) = (read(&op.cos)?, read(&op.sin)?, read_strided(x));
        let kernel = Rotate::<T> {
            x: elements.as_slice()?,
            cos: cos.as_slice::<Acc>()?,
            sin: sin.as_slice::<Acc>()?,
            strides,
            heads,
            seq,
            head_dim,
            table_per_batch: op.cos.rank() == 3,
            layout: op.layout,
            direction,
        };
        let (y, []) = map_rows(batch * heads * seq, head_dim, kernel);
        Ok(value(y, x.shape()))
    })
}

struct Rotate<'a, T: Element> {
    x: &'a [T],
    cos: &'a [T::Acc],
    sin: &'a [T::Acc],
    /// Of batch, head and position.
    strides: [usize; 3],
    heads: usize,
    seq: usize,
    head_dim: usize,
    table_per_batch: bool,
    layout: RopeLayout,
    direction: Direction,
}

// SAFETY: `rotate_head` writes all of its output, which is all of `out`.
unsafe impl<T: Element> Rows<T, 0> for Rotate<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        _simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        _: [&mut [T::Acc]; 0],
        _: &mut Scratch<T>,
    ) {
        let (plane, position) = (index / self.seq, index % self.seq);
        let (batch, head) = (plane / self.heads, plane % self.heads);
        let start = batch * self.strides[0] + head * self.strides[1] + position * self.strides[2];
        let half = self.head_dim / 2;
        let table = half * if self.table_per_batch { batch * self.seq + position } else { position };
        let (mut buffer, mut out_buffer) = (T::BUFFER, T::BUFFER);
        rotate_head::<T>(
            self.layout,
            self.direction,
            T::widened(&self.x[start..][..self.head_dim], &mut buffer),
            &self.cos[table..][..half],
            &self.sin[table..][..half],
            T::target(out, &mut out_buffer),
        );
        // SAFETY: `rotate_head` wrote all of the target.
        unsafe { T::finish(out, &out_buffer) };
    }
}

/// Loops of products and sums, which the compiler turns into vector instructions in either layout.
#[inline(always)]
fn rotate_head<T: Element>(
    layout: RopeLayout,
    direction: Direction,
    x: &[T::Acc],
    cos: &[T::Acc],
    sin: &[T::Acc],
    y: &mut [MaybeUninit<T::Acc>],
) {
    let sign = T::acc(if direction == Direction::Forward { 1.0 } else { -1.0 });
    match layout {
        RopeLayout::Half => {
            let ((x1, x2), (y1, y2)) = (x.split_at(cos.len()), y.split_at_mut(cos.len()));
            for i in 0..cos.len().min(sin.len()).min(x2.len()).min(y2.len()) {
                let sin = sin[i] * sign;
                y1[i].write(x1[i] * cos[i] - x2[i] * sin);
                y2[i].write(x1[i] * sin + x2[i] * cos[i]);
            }
        }
        RopeLayout::Interleaved => {
            for (((x, y), cos), sin) in x.as_chunks::<2>().0.iter().zip(y.as_chunks_mut::<2>().0).zip(cos).zip(sin) {
                let sin = *sin * sign;
                y[0].write(x[0] * *cos - x[1] * sin);
                y[1].write(x[0] * sin + x[1] * *cos);
            }
        }
    }
}
