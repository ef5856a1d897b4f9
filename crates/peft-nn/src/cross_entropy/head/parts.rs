//! Gradients of the parameters, added up over positions.

use candle_core::{Result, Tensor, WithDType};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::pass::Head;
use super::rows::AddScaled;
use crate::cpu::simd::{Times, accumulate, dispatch, update};
use crate::cpu::{ELEMENTS_PER_TASK, Element, column_sums, elements, for_each_row, map, read, value};
use crate::graph::Value;

/// The gradients that are wanted. Their elements lie where nobody else has them, so that they are scaled in place.
pub(super) struct Parts {
    /// A row for each position that counts.
    hidden: Option<Value>,
    /// Of weight, bias, a and b, in the type of the arithmetic.
    parameters: [Option<Value>; 4],
}

impl Parts {
    pub(super) fn new<T: Element>(hidden: Option<Vec<T>>, parameters: [Option<Sum<T>>; 4]) -> Self {
        fn flat<U: WithDType>(elements: Vec<U>) -> Value {
            let len = elements.len();
            value(elements, len)
        }
        Self { hidden: hidden.map(flat), parameters: parameters.map(|sum| sum.map(|sum| flat(sum.finish()))) }
    }

    /// The gradients as tensors, each position's times its factor; those of the parameters times the one factor of all positions.
    pub(super) fn finish<T: Element>(self, head: &Head, factors: &[T::Acc]) -> Result<[Option<Tensor>; 5]> {
        let hidden = match self.hidden {
            Some(rows) => Some(hidden_gradient::<T>(elements(rows)?, head, factors)?),
            None => None,
        };
        let factor = factors.first().map_or(1.0, |factor| factor.to_f64());
        let shapes = head.parameter_shapes()?;
        let mut tensors = [hidden, None, None, None, None];
        for ((tensor, elements_), shape) in tensors[1..].iter_mut().zip(self.parameters).zip(shapes) {
            let Some(sums) = elements_ else { continue };
            let mut sums = elements::<T::Acc>(sums)?;
            scale_all(&mut sums, factor);
            *tensor = Some(value(T::narrow_all(sums), shape).into_tensor());
        }
        Ok(tensors)
    }
}

/// The rows of positions that count, times their factors, among rows of zeros for the others.
fn hidden_gradient<T: Element>(mut rows: Vec<T>, head: &Head, factors: &[T::Acc]) -> Result<Tensor> {
    let (positions, width) = head.hidden().dims2()?;
    for_each_row(&mut rows, width, |i, row| dispatch(Scale { factor: factors[i].to_f64(), values: row }));
    if head.counted().len() < positions {
        let mut all = vec![T::zero(); positions * width];
        for (counted, row) in head.counted().iter().zip(rows.chunks_exact(width.max(1))) {
            all[counted.position * width..][..width].copy_from_slice(row);
        }
        rows = all;
    }
    Ok(value(rows, head.shape().clone()).into_tensor())
}

fn scale_all<T: Element>(values: &mut [T], factor: f64) {
    if factor != 1.0 {
        for_each_row(values, ELEMENTS_PER_TASK, |_, part| dispatch(Scale { factor, values: part }));
    }
}

struct Scale<'a, T> {
    factor: f64,
    values: &'a mut [T],
}

impl<T: Element> WithSimd for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        update(simd, Times(self.factor), self.values);
    }
}

/// `x + scale * y`
pub(super) fn add_scaled<T: Element>(x: &[T], y: &[T], scale: f64) -> Vec<T> {
    let [sum] = map(AddScaled(scale), [x, y]);
    sum
}

/// A sum over positions that becomes the gradient of a parameter, in the type of the arithmetic.
pub(super) struct Sum<T: Element> {
    len: usize,
    /// None before the first terms.
    sums: Option<Vec<T::Acc>>,
}

impl<T: Element> Sum<T> {
    pub(super) fn of(len: usize) -> Self {
        Self { len, sums: None }
    }

    /// `sums += scale * terms`
    pub(super) fn add(&mut self, terms: Vec<T>, scale: f64) {
        let Some(sums) = &mut self.sums else {
            let mut sums = T::widen_all(terms);
            scale_all(&mut sums, scale);
            self.sums = Some(sums);
            return;
        };
        let parts = sums.par_chunks_mut(ELEMENTS_PER_TASK).zip(terms.par_chunks(ELEMENTS_PER_TASK));
        parts.for_each(|(sums, terms)| dispatch(AddTo { sums, terms, scale }));
    }

    /// Adds the rows of a matrix.
    pub(super) fn add_rows(&mut self, matrix: &Tensor) -> Result<()> {
        let elements = read(matrix)?;
        let columns = column_sums(elements.as_slice::<T>()?, self.len);
        match &mut self.sums {
            Some(sums) => sums.iter_mut().zip(columns).for_each(|(sum, column)| *sum += column),
            None => self.sums = Some(columns),
        }
        Ok(())
    }

    fn finish(self) -> Vec<T::Acc> {
        self.sums.unwrap_or_else(|| vec![T::acc(0.0); self.len])
    }
}

struct AddTo<'a, T: Element> {
    sums: &'a mut [T::Acc],
    terms: &'a [T],
    scale: f64,
}

impl<T: Element> WithSimd for AddTo<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        accumulate(simd, Times(self.scale), [self.terms], [self.sums]);
    }
}
