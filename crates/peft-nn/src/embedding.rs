//! Embedding lookup.

use std::mem::MaybeUninit;

use candle_core::{DType, Device, Result, Tensor, bail};
use num_traits::Zero;
use pulp::{Simd, WithSimd};

use crate::checks::{acc_dtype, ensure_float};
use crate::cpu::simd::{Identity, accumulate, dispatch};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, for_each_row, map_rows, read, value};
use crate::graph::{Backward, Value, join};

const NAME: &str = "embedding";

/// The rows of `weight` that `ids` names.
///
/// `ids` has any shape and an integer dtype, `weight` is `(vocabulary, width)`, the result `(ids.., width)`. An id
/// outside the vocabulary is an error. A frozen weight gives an untracked result; a tracked one gets its gradient, the sum over equal
/// ids, which for 16-bit types is taken in f32 and rounded once.
pub fn embedding(ids: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let &[vocabulary, width] = weight.dims() else {
        bail!("{NAME}: the weight is (vocabulary, width), got {:?}", weight.dims())
    };
    ensure_float(NAME, "weight", weight)?;
    let shape = [ids.dims(), &[width]].concat();
    let saved = Embedding { ids: checked(ids, vocabulary)?, vocabulary, width };
    let frozen = weight.detach().contiguous()?;
    let value =
        if weight.device().is_cpu() { saved.rows(&frozen)? } else { Value::Tensor(saved.composed_rows(&frozen)?) };
    join([Some(weight)], value.reshape(shape)?, saved)
}

/// The ids in the order of the tensor.
fn checked(ids: &Tensor, vocabulary: usize) -> Result<Vec<u32>> {
    if !ids.dtype().is_int() {
        bail!("{NAME}: the ids are {}, expected an integer dtype", ids.dtype().as_str());
    }
    let ids = ids.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let checked = ids.into_iter().map(|id| match u32::try_from(id) {
        Ok(row) if (row as usize) < vocabulary => Ok(row),
        _ => bail!("{NAME}: token id {id} is out of range, the vocabulary has {vocabulary} entries"),
    });
    checked.collect()
}

struct Embedding {
    ids: Vec<u32>,
    vocabulary: usize,
    width: usize,
}

impl Backward<1> for Embedding {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dweight = if grad.device().is_cpu() { self.sums(grad)?.into_tensor() } else { self.composed_sums(grad)? };
        Ok([Some(dweight)])
    }
}

impl Embedding {
    fn rows(&self, weight: &Tensor) -> Result<Value> {
        dispatch_float!(NAME, weight, T => {
            let elements = read(weight)?;
            let kernel = Lookup { ids: &self.ids, weight: elements.as_slice::<T>()?, width: self.width };
            let (rows, []) = map_rows(self.ids.len(), self.width, kernel);
            Ok(value(rows, (self.ids.len(), self.width)))
        })
    }

    /// The rows of the gradient added up by id.
    fn sums(&self, grad: &Tensor) -> Result<Value> {
        let (starts, positions) = self.positions_by_id();
        dispatch_float!(NAME, grad, T => {
            let elements = read(grad)?;
            let grad = elements.as_slice::<T>()?;
            let mut dweight = vec![T::zero(); self.vocabulary * self.width];
            for_each_row(&mut dweight, self.width, |id, out| {
                match &positions[starts[id]..starts[id + 1]] {
                    [] => {}
                    [position] => out.copy_from_slice(&grad[position * self.width..][..self.width]),
                    positions => dispatch(SumRows { grad, positions, out }),
                }
            });
            Ok(value(dweight, (self.vocabulary, self.width)))
        })
    }

    /// The positions by their id, those of one id in order so that a sum is the same every time, and where each id begins.
    fn positions_by_id(&self) -> (Vec<usize>, Vec<usize>) {
        let mut starts = vec![0; self.vocabulary + 1];
        for &id in &self.ids {
            starts[id as usize + 1] += 1;
        }
        for id in 0..self.vocabulary {
            starts[id + 1] += starts[id];
        }
        let mut next = starts.clone();
        let mut positions = vec![0; self.ids.len()];
        for (position, &id) in self.ids.iter().enumerate() {
            positions[next[id as usize]] = position;
            next[id as usize] += 1;
        }
        (starts, positions)
    }

    /// The specification of [`rows`](Self::rows), and the path of devices without a kernel.
    fn composed_rows(&self, weight: &Tensor) -> Result<Tensor> {
        weight.index_select(&self.ids_on(weight.device())?, 0)
    }

    /// The specification of [`sums`](Self::sums), and the path of devices without a kernel.
    fn composed_sums(&self, grad: &Tensor) -> Result<Tensor> {
        let rows = grad.reshape((self.ids.len(), self.width))?.to_dtype(acc_dtype(grad.dtype()))?;
        let zeros = Tensor::zeros((self.vocabulary, self.width), rows.dtype(), rows.device())?;
        zeros.index_add(&self.ids_on(grad.device())?, &rows, 0)?.to_dtype(grad.dtype())
    }

    fn ids_on(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.ids, self.ids.len(), device)
    }
}

struct Lookup<'a, T> {
    ids: &'a [u32],
    weight: &'a [T],
    width: usize,
}

// SAFETY: a row of the weight is as long as `out`, all of which is written.
unsafe impl<T: Element> Rows<T, 0> for Lookup<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        _simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        _: [&mut [T::Acc]; 0],
        _: &mut Scratch<T>,
    ) {
        let row = &self.weight[self.ids[index] as usize * self.width..][..self.width];
        out.write_copy_of_slice(row);
    }
}

/// The sum of some rows.
struct SumRows<'a, T> {
    grad: &'a [T],
    positions: &'a [usize],
    out: &'a mut [T],
}

impl<T: Element> WithSimd for SumRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.out.len();
        let mut sums = vec![T::acc(0.0); width];
        for position in self.positions {
            accumulate(simd, Identity, [&self.grad[position * width..][..width]], [&mut sums]);
        }
        for (out, sum) in self.out.iter_mut().zip(sums) {
            *out = T::narrow(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_bits_on_each_arch, assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, tolerance, width| {
            let op = Embedding { ids: vec![3, 0, 3, 3, 5, 0], vocabulary: 7, width };
            let weight = sample((7, width), 0, dtype);
            assert_same_value(op.rows(&weight), op.composed_rows(&weight), 0.0);
            let grad = sample((2, 3, width), 1, dtype);
            assert_same_value(op.sums(&grad), op.composed_sums(&grad), tolerance);
            assert_same_bits_on_each_arch(|| Ok(vec![op.sums(&grad)?.into_tensor()]));
            Ok(())
        });
    }
}
