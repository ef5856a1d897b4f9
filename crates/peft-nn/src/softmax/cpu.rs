use std::mem::MaybeUninit;

use candle_core::{D, Result, Tensor};
use pulp::Simd;

use super::NAME;
use crate::cpu::simd::{Elementwise, ExpSum, Lanes, Product, sum, write};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, map_rows, read, value};
use crate::graph::Value;

pub(super) fn forward(scores: &Tensor) -> Result<Value> {
    dispatch_float!(NAME, scores, T => {
        let width = scores.dim(D::Minus1)?;
        let elements = read(scores)?;
        let elements = elements.as_slice::<T>()?;
        let rows = elements.len().checked_div(width).unwrap_or(0);
        let kernel = Probabilities { scores: elements, width };
        let (p, []) = map_rows(rows, width, kernel);
        Ok(value(p, scores.shape()))
    })
}

pub(super) fn backward(probabilities: &Tensor, grad: &Tensor) -> Result<Tensor> {
    dispatch_float!(NAME, grad, T => {
        let width = grad.dim(D::Minus1)?;
        let (p, g) = (read(probabilities)?, read(grad)?);
        let (probabilities, g) = (p.as_slice::<T>()?, g.as_slice::<T>()?);
        let rows = g.len().checked_div(width).unwrap_or(0);
        let (dscores, []) = map_rows(rows, width, Gradient { probabilities, grad: g, width });
        Ok(value(dscores, grad.shape()).into_tensor())
    })
}

struct Probabilities<'a, T> {
    scores: &'a [T],
    width: usize,
}

// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T, 0> for Probabilities<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        _: [&mut [T::Acc]; 0],
        [buffer, _]: &mut Scratch<T>,
    ) {
        let scores = T::widened_row(&self.scores[index * self.width..][..self.width], buffer);
        let mut total = ExpSum::EMPTY;
        total.add(simd, 1.0, scores);
        write(simd, total.share(1.0), [scores], [out]);
    }
}

struct Gradient<'a, T> {
    probabilities: &'a [T],
    grad: &'a [T],
    width: usize,
}

// SAFETY: `write` writes all of `out`.
unsafe impl<T: Element> Rows<T, 0> for Gradient<'_, T> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        index: usize,
        out: &mut [MaybeUninit<T>],
        _: [&mut [T::Acc]; 0],
        [p_buffer, grad_buffer]: &mut Scratch<T>,
    ) {
        let row = index * self.width..(index + 1) * self.width;
        let p = T::widened_row(&self.probabilities[row.clone()], p_buffer);
        let inputs = [p, T::widened_row(&self.grad[row], grad_buffer)];
        let [dot] = sum(simd, Product, inputs);
        write(simd, FromDot { dot }, inputs, [out]);
    }
}

/// `p * (grad - dot)`
#[derive(Clone, Copy)]
struct FromDot {
    dot: f64,
}

impl Elementwise<2, 1> for FromDot {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [p, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [p * (grad - self.dot)]
    }
}
