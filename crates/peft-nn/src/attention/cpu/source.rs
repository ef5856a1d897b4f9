//! Heads of an operand, read where they lie.

use candle_core::{Result, Storage, StorageRef, Tensor, WithDType, bail};

use super::arithmetic::Arithmetic;
use crate::attention::geometry::Arrangement;
use crate::cpu::Element;

/// A tensor with contiguous rows, borrowed.
pub(super) struct Operand<'a> {
    storage: StorageRef<'a>,
    start: usize,
    batch: usize,
    head: usize,
    position: usize,
    width: usize,
}

impl<'a> Operand<'a> {
    /// `width` is that of one head.
    pub(super) fn of(tensor: &'a Tensor, arrangement: Arrangement, width: usize) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let start = layout.start_offset();
        let (batch, head, position) = match (arrangement, layout.stride()) {
            (Arrangement::Separate, &[batch, head, position, _]) => (batch, head, position),
            (Arrangement::Merged, &[batch, position, _]) => (batch, width, position),
            (_, strides) => bail!("attention: an operand has {} dimensions", strides.len()),
        };
        Ok(Self { storage, start, batch, head, position, width })
    }

    pub(super) fn heads<T: WithDType>(&self) -> Result<Heads<'_, T>> {
        let Storage::Cpu(storage) = &*self.storage else {
            bail!("attention: an operand is on {:?}, expected one on the cpu", self.storage.device())
        };
        let elements = &T::cpu_storage_as_slice(storage)?[self.start..];
        let Self { batch, head, position, width, .. } = *self;
        Ok(Heads { elements, batch, head, position, width })
    }
}

/// The rows of each head.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    elements: &'a [T],
    batch: usize,
    head: usize,
    position: usize,
    pub(super) width: usize,
}

impl<'a, T: Element> Heads<'a, T> {
    #[inline(always)]
    pub(super) fn row(&self, batch: usize, head: usize, position: usize) -> &'a [T] {
        &self.elements[batch * self.batch + head * self.head + position * self.position..][..self.width]
    }
}

/// cos and sin of every position.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a, A> {
    pub(super) cos: &'a [A],
    pub(super) sin: &'a [A],
    pub(super) half: usize,
    /// Elements from one batch entry to the next; zero where they share the tables.
    pub(super) batch: usize,
}

impl<'a, A: Arithmetic> Tables<'a, A> {
    #[inline(always)]
    fn row(&self, batch: usize, position: usize) -> (&'a [A], &'a [A]) {
        let start = batch * self.batch + position * self.half;
        (&self.cos[start..][..self.half], &self.sin[start..][..self.half])
    }

    /// `row` rotated to its position and rounded to `T`.
    #[inline(always)]
    pub(super) fn rotate<T: Element<Acc = A>>(&self, batch: usize, position: usize, row: &mut [A]) {
        let (cos, sin) = self.row(batch, position);
        let (x1, x2) = row.split_at_mut(self.half);
        for (((x1, x2), &cos), &sin) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
            let (y1, y2) = (*x1 * cos - *x2 * sin, *x1 * sin + *x2 * cos);
            (*x1, *x2) = (T::narrow(y1).widen(), T::narrow(y2).widen());
        }
    }

    /// The transpose of [`Tables::rotate`], of a row rounded to `T`, into `out`.
    #[inline(always)]
    pub(super) fn unrotate<T: Element<Acc = A>>(&self, batch: usize, position: usize, row: &[A], out: &mut [T]) {
        let (cos, sin) = self.row(batch, position);
        let ((x1, x2), (y1, y2)) = (row.split_at(self.half), out.split_at_mut(self.half));
        for i in 0..self.half {
            let (x1, x2) = (T::narrow(x1[i]).widen(), T::narrow(x2[i]).widen());
            y1[i] = T::narrow(x1 * cos[i] + x2 * sin[i]);
            y2[i] = T::narrow(x2 * cos[i] - x1 * sin[i]);
        }
    }
}
