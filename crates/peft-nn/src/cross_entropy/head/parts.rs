//! Gradients, as they are added up block by block and as they wait for the backward pass.

use candle_core::{Result, Shape, Tensor, WithDType};
use pulp::{Simd, WithSimd};

use super::inputs::{Inputs, Matrices, Wanted};
use super::pass::{Block, ThroughHead};
use super::product::{Multiply, Side, add};
use super::rows::Blend;
use crate::WeightLayout;
use crate::cpu::simd::{Times, dispatch, update};
use crate::cpu::{ELEMENTS_PER_TASK, Element, column_sums, elements, for_each_row, value};
use crate::graph::Value;

/// The gradients that are wanted, while blocks are added. All but those of the hidden states are in the type of the arithmetic.
pub(super) struct Sums<'a, T: Multiply> {
    matrices: &'a Matrices<'a, T>,
    /// A row for each position that counts.
    hidden: Option<Vec<T>>,
    /// `g B`, a row for each position that counts.
    through_b: Option<Vec<T::Acc>>,
    /// `h A^T`, a row for each position that counts.
    low: Option<Vec<T::Acc>>,
    weight: Option<Vec<T::Acc>>,
    bias: Option<Vec<T::Acc>>,
    b: Option<Vec<T::Acc>>,
}

impl<'a, T: Multiply> Sums<'a, T> {
    pub(super) fn new(matrices: &'a Matrices<'a, T>, counted: usize, wanted: Wanted) -> Self {
        let &Matrices { vocabulary, hidden_size, .. } = matrices;
        let rank = matrices.change.as_ref().map_or(0, |change| change.rank);
        let zeros = |wanted: bool, len: usize| wanted.then(|| vec![T::acc(0.0); len]);
        let rows = |wanted: bool| wanted.then(|| Vec::with_capacity(counted * rank));
        Self {
            matrices,
            hidden: wanted.hidden.then(|| Vec::with_capacity(counted * hidden_size)),
            through_b: rows(wanted.a || wanted.mixing),
            low: rows(wanted.mixing),
            weight: zeros(wanted.weight, vocabulary * hidden_size),
            bias: zeros(wanted.bias, vocabulary),
            b: zeros(wanted.b, vocabulary * rank),
        }
    }

    /// Adds what has a row for each position.
    pub(super) fn add_positions(&mut self, block: &Block<'_, T>, through: ThroughHead<T::Acc>) -> Result<()> {
        let ThroughHead { weight, b } = through;
        if let (Some(all), Some(mut rows)) = (&mut self.hidden, weight) {
            if let (Some(change), Some(b)) = (&self.matrices.change, &b) {
                let low = change.through_mixing::<T>(b, block.rows())?;
                let terms = T::new_product(&Side::of(&low, block.rows(), change.rank), &change.a)?;
                let width = self.matrices.hidden_size;
                let blend = Blend { by: 1.0, times: change.scale };
                for_each_row(&mut rows, width, |i, row| blend.rows(row, &terms[i * width..][..width]));
            }
            all.extend(T::narrow_all(rows));
        }
        if let (Some(all), Some(b)) = (&mut self.through_b, b) {
            all.extend(b);
        }
        if let (Some(all), Some(change)) = (&mut self.low, &block.change) {
            all.extend_from_slice(&change.low);
        }
        Ok(())
    }

    /// Adds what has a part for each entry of the vocabulary: `gradients` are those of whole rows of logits.
    pub(super) fn add_entries(&mut self, layout: WeightLayout, block: &Block<'_, T>, gradients: &[T]) -> Result<()> {
        let &Matrices { vocabulary, hidden_size, .. } = self.matrices;
        let transposed = Side::of(gradients, block.rows(), vocabulary).t();
        if let Some(sums) = &mut self.weight {
            let hidden = Side::of(&block.hidden, block.rows(), hidden_size);
            add(
                sums,
                &match layout {
                    WeightLayout::OutIn => T::new_product(&transposed, &hidden)?,
                    WeightLayout::InOut => T::new_product(&hidden.t(), &transposed.t())?,
                },
            );
        }
        if let Some(sums) = &mut self.bias {
            add(sums, &column_sums(gradients, vocabulary));
        }
        if let (Some(sums), Some(change)) = (&mut self.b, &block.change) {
            let rank = change.mixed.len() / block.rows().max(1);
            add(sums, &T::new_product(&transposed, &Side::of(&change.mixed, block.rows(), rank))?);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Parts {
        fn flat<U: WithDType>(elements: Option<Vec<U>>) -> Option<Value> {
            elements.map(|elements| {
                let len = elements.len();
                value(elements, len)
            })
        }
        Parts {
            hidden: flat(self.hidden),
            through_b: flat(self.through_b),
            low: flat(self.low),
            weight: flat(self.weight),
            bias: flat(self.bias),
            b: flat(self.b),
        }
    }
}

/// The gradients that are wanted, or what they are made of. Their elements lie where nobody else has them, so that they are scaled in
/// place.
pub(super) struct Parts {
    hidden: Option<Value>,
    through_b: Option<Value>,
    low: Option<Value>,
    weight: Option<Value>,
    bias: Option<Value>,
    b: Option<Value>,
}

impl Parts {
    /// Whether there is one in which positions are added up already, so that they count alike.
    pub(super) fn of_entries(&self) -> bool {
        self.weight.is_some() || self.bias.is_some() || self.b.is_some()
    }

    /// The gradients of hidden states, weight, bias, a, b and mixing, those of each position times its factor. With
    /// [`of_entries`](Self::of_entries) these are all equal.
    pub(super) fn finish<T: Multiply>(
        self,
        inputs: &Inputs,
        factors: &[T::Acc],
        wanted: Wanted,
    ) -> Result<[Option<Tensor>; 6]> {
        inputs.with_matrices::<T, _>(|matrices| {
            let &Matrices { vocabulary, hidden_size, .. } = matrices;
            let weight_shape = match inputs.layout {
                WeightLayout::OutIn => (vocabulary, hidden_size),
                WeightLayout::InOut => (hidden_size, vocabulary),
            };
            let factor = factors.first().map_or(1.0, |factor| factor.to_f64());
            let sum = |sums: Option<Value>, shape: Shape| {
                let Some(sums) = sums else { return Ok::<_, candle_core::Error>(None) };
                let mut sums = elements::<T::Acc>(sums)?;
                scale_all(&mut sums, factor);
                Ok(Some(value(sums, shape)))
            };
            let narrow =
                |sums: Option<Value>| sums.map(|sums| Ok::<_, candle_core::Error>(value_in::<T>(sums)?.into_tensor()));
            let hidden = self.hidden.map(|rows| hidden_gradient::<T>(elements(rows)?, inputs, factors)).transpose()?;
            let weight = narrow(sum(self.weight, weight_shape.into())?).transpose()?;
            let bias = narrow(sum(self.bias, vocabulary.into())?).transpose()?;
            let (Some(change), Some(own)) = (&matrices.change, &inputs.change) else {
                return Ok([hidden, weight, bias, None, None, None]);
            };
            let rank = change.rank;
            let b = sum(self.b, (vocabulary, rank).into())?;
            let (mut a, mut mixing) = (None, None);
            if let Some(through_b) = self.through_b {
                // The gradient of `h A^T M^T`.
                let mut mixed = elements::<T::Acc>(through_b)?;
                for_each_row(&mut mixed, rank, |i, row| {
                    row.iter_mut().for_each(|x| *x *= factors[i] * T::acc(change.scale));
                });
                let rows = factors.len();
                if let Some(low) = self.low {
                    let low = elements::<T::Acc>(low)?;
                    let product = T::new_product(&Side::of(&mixed, rows, rank).t(), &Side::of(&low, rows, rank))?;
                    mixing = Some(value(product, (rank, rank)));
                }
                if wanted.a {
                    let low = change.through_mixing::<T>(&mixed, rows)?;
                    let hidden = inputs.gather(matrices.hidden, &inputs.counted);
                    let hidden = Side::of(&hidden, rows, hidden_size);
                    a = Some(value(T::new_product(&Side::of(&low, rows, rank).t(), &hidden)?, (rank, hidden_size)));
                }
            }
            let low_rank = |gradient: Option<Value>| match gradient {
                Some(gradient) => Ok::<_, candle_core::Error>(Some(gradient.into_dtype(own.dtype)?.into_tensor())),
                None => Ok(None),
            };
            Ok([hidden, weight, bias, low_rank(a)?, low_rank(b)?, low_rank(mixing)?])
        })
    }
}

/// Sums in the type of the arithmetic, rounded.
fn value_in<T: Element>(sums: Value) -> Result<Value> {
    sums.into_dtype(T::DTYPE)
}

/// The rows of positions that count, times their factors, among rows of zeros for the others.
fn hidden_gradient<T: Element>(mut rows: Vec<T>, inputs: &Inputs, factors: &[T::Acc]) -> Result<Tensor> {
    let (positions, width) = inputs.hidden.dims2()?;
    for_each_row(&mut rows, width, |i, row| dispatch(Scale { factor: factors[i].to_f64(), values: row }));
    if inputs.counted.len() < positions {
        let mut all = vec![T::zero(); positions * width];
        for (counted, row) in inputs.counted.iter().zip(rows.chunks_exact(width.max(1))) {
            all[counted.position * width..][..width].copy_from_slice(row);
        }
        rows = all;
    }
    Ok(value(rows, inputs.shape.clone()).into_tensor())
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
