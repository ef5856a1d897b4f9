use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{D, Result, Tensor};
use pulp::Simd;

use super::NAME;
use crate::attention::Visibility;
use crate::cpu::simd::{Elementwise, ExpSum, Lanes, Product, sum, write};
use crate::cpu::{Element, Rows, Scratch, dispatch_float, map_rows, read, value};
use crate::graph::Value;

pub(super) fn probabilities(scores: &Tensor, scale: f64, visibility: Option<&Visibility>) -> Result<Value> {
    dispatch_float!(NAME, scores, T => {
        let padding = visibility.and_then(Visibility::key_padding).map(read).transpose()?;
        let padding = padding.as_ref().map(|padding| padding.as_slice::<u8>()).transpose()?;
        let width = scores.dim(D::Minus1)?;
        let elements = read(scores)?;
        let elements = elements.as_slice::<T>()?;
        let rows = elements.len().checked_div(width).unwrap_or(0);
        let kernel = Probabilities { scores: elements, scale, width, rows, visibility, padding };
        let (p, []) = map_rows(rows, width, kernel);
        Ok(value(p, scores.shape()))
    })
}

pub(super) fn scores_gradient(probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<Tensor> {
    dispatch_float!(NAME, grad, T => {
        let width = grad.dim(D::Minus1)?;
        let (p, g) = (read(probabilities)?, read(grad)?);
        let (probabilities, g) = (p.as_slice::<T>()?, g.as_slice::<T>()?);
        let rows = g.len().checked_div(width).unwrap_or(0);
        let (dscores, []) = map_rows(rows, width, Gradient { probabilities, grad: g, scale, width });
        Ok(value(dscores, grad.shape()).into_tensor())
    })
}

struct Probabilities<'a, T> {
    scores: &'a [T],
    scale: f64,
    width: usize,
    rows: usize,
    visibility: Option<&'a Visibility>,
    padding: Option<&'a [u8]>,
}

// SAFETY: all of `out` is zeroed first where `write` does not write all of it.
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
        let Some(visibility) = self.visibility else {
            let mut total = ExpSum::EMPTY;
            total.add(simd, self.scale, scores);
            return write(simd, total.share(self.scale), [scores], [out]);
        };
        for p in out.iter_mut() {
            p.write(T::zero());
        }
        let keys = visibility.of_row(index, self.rows, self.padding);
        let runs = VisibleRuns { keep: keys.keep, start: 0, end: keys.end };
        let mut total = ExpSum::EMPTY;
        for run in runs {
            total.add(simd, self.scale, &scores[run]);
        }
        for run in runs {
            write(simd, total.share(self.scale), [&scores[run.clone()]], [&mut out[run]]);
        }
    }
}

/// The runs of keys between `start` and `end` that are not hidden.
#[derive(Clone, Copy)]
struct VisibleRuns<'a> {
    keep: Option<&'a [u8]>,
    start: usize,
    end: usize,
}

impl Iterator for VisibleRuns<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let first = |from: usize, visible: bool| match self.keep {
            None => (visible && from < self.end).then_some(from),
            Some(keep) => (from..self.end).find(|&key| (keep[key] != 0) == visible),
        };
        let start = first(self.start, true)?;
        let end = first(start, false).unwrap_or(self.end);
        self.start = end;
        Some(start..end)
    }
}

struct Gradient<'a, T> {
    probabilities: &'a [T],
    grad: &'a [T],
    scale: f64,
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
        write(simd, FromDot { dot, scale: self.scale }, inputs, [out]);
    }
}

/// `scale * p * (grad - dot)`
#[derive(Clone, Copy)]
struct FromDot {
    dot: f64,
    scale: f64,
}

impl Elementwise<2, 1> for FromDot {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [p, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [p * self.scale * (grad - self.dot)]
    }
}
