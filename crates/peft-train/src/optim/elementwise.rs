//! Updates of large tensors element by element, in one pass over memory.

use candle_core::{DType, Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::array;

/// Elements that one task computes.
const BLOCK: usize = 1 << 14;

/// The float types that are trained.
pub(super) trait Real: WithDType {
    fn sqrt(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

impl Real for f64 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

/// What becomes of the elements at one place of `I` tensors: those of `O` new ones.
pub(super) trait Elementwise<const I: usize, const O: usize>: Sync {
    fn element<T: Real>(&self, inputs: [T; I]) -> [T; O];

    /// The same in candle's operations, for devices other than the CPU; to the bit what [`element`](Self::element) makes.
    fn composed(&self, inputs: [&Tensor; I]) -> Result<[Tensor; O]>;

    /// The new tensors, from tensors of one shape, dtype and device.
    fn apply(&self, inputs: [&Tensor; I]) -> Result<[Tensor; O]> {
        if !inputs.iter().all(|input| input.device().is_cpu()) {
            return self.composed(inputs);
        }
        match inputs.first().map(|input| input.dtype()) {
            Some(DType::F32) => on_cpu::<f32, I, O>(self, inputs),
            Some(DType::F64) => on_cpu::<f64, I, O>(self, inputs),
            _ => self.composed(inputs),
        }
    }
}

fn on_cpu<T: Real, const I: usize, const O: usize>(
    f: &(impl Elementwise<I, O> + ?Sized),
    inputs: [&Tensor; I],
) -> Result<[Tensor; O]> {
    let Some(shape) = inputs.first().map(|input| input.shape().clone()) else { bail!("no tensors to compute from") };
    let mut contiguous = Vec::with_capacity(I);
    for input in inputs {
        if input.shape() != &shape {
            bail!("tensors of shapes {shape:?} and {:?} do not go together", input.shape());
        }
        contiguous.push(input.contiguous()?);
    }
    let read: Vec<_> = contiguous.iter().map(|input| input.storage_and_layout()).collect();
    let mut slices: [&[T]; I] = [&[]; I];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&read) {
        let (Storage::Cpu(storage), Some((start, end))) = (&**storage, layout.contiguous_offsets()) else {
            bail!("a contiguous tensor on the cpu was expected")
        };
        *slice = &T::cpu_storage_as_slice(storage)?[start..end];
    }
    let mut outputs: [Vec<T>; O] = array::from_fn(|_| vec![T::zero(); shape.elem_count()]);
    let mut blocks = outputs.each_mut().map(|output| output.chunks_mut(BLOCK));
    let blocks: Vec<[&mut [T]; O]> = (0..shape.elem_count().div_ceil(BLOCK))
        .map(|_| blocks.each_mut().map(|blocks| blocks.next().unwrap_or_default()))
        .collect();
    blocks.into_par_iter().enumerate().for_each(|(i, mut outputs)| {
        let len = outputs.first().map_or(0, |output| output.len());
        let inputs = slices.map(|slice| &slice[i * BLOCK..][..len]);
        for j in 0..len {
            for (output, value) in outputs.iter_mut().zip(f.element(inputs.map(|input| input[j]))) {
                output[j] = value;
            }
        }
    });
    let mut tensors = Vec::with_capacity(O);
    for output in outputs {
        tensors.push(Tensor::from_vec(output, &shape, &candle_core::Device::Cpu)?);
    }
    tensors.try_into().or_else(|_| bail!("as many tensors as outputs were expected"))
}

/// The sum of the squares of all elements, in f64 and always in the same order.
pub(super) fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("a contiguous tensor on the cpu was expected")
    };
    fn sum<T: Real>(elements: &[T]) -> f64 {
        let blocks = elements.par_chunks(BLOCK).map(|block| block.iter().map(|x| x.to_f64() * x.to_f64()).sum());
        blocks.collect::<Vec<f64>>().into_iter().sum()
    }
    match tensor.dtype() {
        DType::F32 => Ok(sum(&f32::cpu_storage_as_slice(storage)?[start..end])),
        DType::F64 => Ok(sum(&f64::cpu_storage_as_slice(storage)?[start..end])),
        other => bail!("a gradient is f32 or f64, got {}", other.as_str()),
    }
}

/// `a + b`
pub(super) struct Plus;

impl Elementwise<2, 1> for Plus {
    #[inline(always)]
    fn element<T: Real>(&self, [a, b]: [T; 2]) -> [T; 1] {
        [a + b]
    }

    fn composed(&self, [a, b]: [&Tensor; 2]) -> Result<[Tensor; 1]> {
        Ok([(a + b)?])
    }
}

/// `x` times a number.
pub(super) struct Times(pub(super) f64);

impl Elementwise<1, 1> for Times {
    #[inline(always)]
    fn element<T: Real>(&self, [x]: [T; 1]) -> [T; 1] {
        [x * T::from_f64(self.0)]
    }

    fn composed(&self, [x]: [&Tensor; 1]) -> Result<[Tensor; 1]> {
        Ok([(x * self.0)?])
    }
}

/// Tests of updates against their composed forms.
#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use candle_core::Device;

    /// The same numbers as candle's operations make, over several tasks and in any layout. (A zero may differ in its sign.)
    #[track_caller]
    pub(in crate::optim) fn assert_composed<const I: usize, const O: usize>(f: &impl Elementwise<I, O>) {
        for dtype in [DType::F32, DType::F64] {
            for (rows, columns) in [(1, 1), (3, 7), (5, 2 * BLOCK / 5 + 3)] {
                let inputs: [Tensor; I] = array::from_fn(|i| {
                    let values = (0..rows * columns).map(|j| ((j * j + 3 * i) as f64 * 0.37).sin().powi(2) + 1e-3);
                    let values = Tensor::from_vec(values.collect(), (columns, rows), &Device::Cpu).unwrap();
                    values.t().unwrap().to_dtype(dtype).unwrap()
                });
                let inputs = inputs.each_ref();
                let (made, composed) = (f.apply(inputs).unwrap(), f.composed(inputs).unwrap());
                for (made, composed) in made.iter().zip(&composed) {
                    let numbers =
                        |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    assert_eq!((made.dtype(), made.dims()), (composed.dtype(), composed.dims()));
                    assert_eq!(numbers(made), numbers(composed));
                }
            }
        }
    }

    #[test]
    fn sums_and_multiples_are_those_of_candle() {
        assert_composed(&Plus);
        assert_composed(&Times(0.3));
    }

    #[test]
    fn squares_are_summed_over_all_tasks() {
        let tensor = Tensor::from_vec(vec![0.5f32; 3 * BLOCK + 7], 3 * BLOCK + 7, &Device::Cpu).unwrap();
        assert_eq!(sum_of_squares(&tensor).unwrap(), (3 * BLOCK + 7) as f64 / 4.0);
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let tensor = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
        assert!(Plus.apply([&tensor(2), &tensor(3)]).is_err());
    }
}
