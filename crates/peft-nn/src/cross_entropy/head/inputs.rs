//! An output head and what is to be predicted from which hidden states, outside any graph.

use std::borrow::Cow;

use candle_core::{DType, Result, Shape, Tensor};

use super::OutputHead;
use super::product::{Multiply, Side};
use crate::WeightLayout;
use crate::checks::acc_dtype;
use crate::cpu::{Element, read};
use crate::cross_entropy::CrossEntropyOptions;
use crate::cross_entropy::targets::Targets;

/// What an output head is applied to, and the head.
pub(super) struct Inputs {
    /// `(positions, hidden_size)`
    pub(super) hidden: Tensor,
    /// The shape it came in.
    pub(super) shape: Shape,
    /// Contiguous, as `stored` says.
    weight: Tensor,
    stored: WeightLayout,
    /// In which the weight came.
    pub(super) layout: WeightLayout,
    pub(super) bias: Option<Tensor>,
    pub(super) change: Option<Change>,
    pub(super) counted: Vec<Counted>,
    pub(super) options: CrossEntropyOptions,
}

/// A low-rank change of the weight in the type of the arithmetic.
pub(super) struct Change {
    /// `(r, hidden_size)`
    pub(super) a: Tensor,
    /// `(vocabulary, r)`
    pub(super) b: Tensor,
    /// `(r, r)`
    pub(super) mixing: Option<Tensor>,
    pub(super) scale: f64,
    pub(super) rank: usize,
    /// In which it came.
    pub(super) dtype: DType,
}

/// A position whose label is not ignored.
#[derive(Clone, Copy)]
pub(super) struct Counted {
    pub(super) position: usize,
    pub(super) target: u32,
}

/// Which gradients there shall be.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Wanted {
    pub(super) hidden: bool,
    pub(super) weight: bool,
    pub(super) bias: bool,
    pub(super) a: bool,
    pub(super) b: bool,
    pub(super) mixing: bool,
}

impl From<[bool; 6]> for Wanted {
    fn from([hidden, weight, bias, a, b, mixing]: [bool; 6]) -> Self {
        Self { hidden, weight, bias, a, b, mixing }
    }
}

impl Wanted {
    /// Whether there is one at all.
    pub(super) fn any(self) -> bool {
        self.hidden || self.a || self.mixing || self.of_entries()
    }

    /// Whether there is one that has a part for each entry of the vocabulary: those are sums over positions of what is known only once
    /// all logits of a position were read.
    pub(super) fn of_entries(self) -> bool {
        self.weight || self.bias || self.b
    }
}

impl Inputs {
    pub(super) fn new(head: &OutputHead<'_>, hidden: &Tensor, targets: &Targets) -> Result<Self> {
        let own = |tensor: &Tensor| tensor.detach().contiguous();
        let wide = |tensor: &Tensor| own(tensor)?.to_dtype(acc_dtype(hidden.dtype()));
        let change = match head.low_rank {
            None => None,
            Some(change) => Some(Change {
                a: wide(&change.a)?,
                b: wide(&change.b)?,
                mixing: change.mixing.as_ref().map(wide).transpose()?,
                scale: change.scale,
                rank: change.a.dim(0)?,
                dtype: change.a.dtype(),
            }),
        };
        // The transpose of a contiguous matrix is read as that matrix in the other layout.
        let (weight, stored) = if !head.weight.is_contiguous() && head.weight.t()?.is_contiguous() {
            let other = match head.layout {
                WeightLayout::OutIn => WeightLayout::InOut,
                WeightLayout::InOut => WeightLayout::OutIn,
            };
            (head.weight.detach().t()?, other)
        } else {
            (own(head.weight)?, head.layout)
        };
        let counted = |(position, target): (usize, &Option<u32>)| Some(Counted { position, target: (*target)? });
        let positions = targets.as_slice().len();
        let (_, hidden_size) = stored.features(&weight)?;
        Ok(Self {
            hidden: own(hidden)?.reshape((positions, hidden_size))?,
            shape: hidden.shape().clone(),
            weight,
            stored,
            layout: head.layout,
            bias: head.bias.map(own).transpose()?,
            change,
            counted: targets.as_slice().iter().enumerate().filter_map(counted).collect(),
            options: head.options,
        })
    }

    /// Those of the values of all positions that belong to positions that count.
    pub(super) fn of_counted<A: Copy>(&self, values: &[A]) -> Vec<A> {
        self.counted.iter().map(|counted| values[counted.position]).collect()
    }

    /// The hidden states of some positions, in their order.
    pub(super) fn gather<'a, T: Element>(&self, hidden: &'a [T], counted: &[Counted]) -> Cow<'a, [T]> {
        let width = if self.hidden.elem_count() == 0 { 0 } else { hidden.len() / self.hidden.dims()[0] };
        let first = counted.first().map_or(0, |first| first.position);
        let end = counted.last().map_or(0, |last| last.position + 1);
        if end - first == counted.len() {
            return Cow::Borrowed(&hidden[first * width..end * width]);
        }
        let mut rows = Vec::with_capacity(counted.len() * width);
        for counted in counted {
            rows.extend_from_slice(&hidden[counted.position * width..][..width]);
        }
        Cow::Owned(rows)
    }

    /// Calls `f` with the head's matrices.
    pub(super) fn with_matrices<T: Multiply, R>(&self, f: impl FnOnce(&Matrices<'_, T>) -> Result<R>) -> Result<R> {
        let (vocabulary, hidden_size) = self.stored.features(&self.weight)?;
        let (hidden, weight) = (read(&self.hidden)?, read(&self.weight)?);
        let bias = self.bias.as_ref().map(read).transpose()?;
        let weight = weight.as_slice::<T>()?;
        let bias = bias.as_ref().map(|bias| bias.as_slice::<T>()).transpose()?;
        let low_rank = self
            .change
            .as_ref()
            .map(|change| Ok::<_, candle_core::Error>((change, read(&change.a)?, read(&change.b)?)));
        let low_rank = low_rank.transpose()?;
        let mixing = self.change.as_ref().and_then(|change| change.mixing.as_ref()).map(read).transpose()?;
        let change = match &low_rank {
            None => None,
            Some((change, a, b)) => Some(ChangeMatrices {
                a: Side::of(a.as_slice::<T::Acc>()?, change.rank, hidden_size),
                b: Side::of(b.as_slice::<T::Acc>()?, vocabulary, change.rank),
                b_values: b.as_slice::<T::Acc>()?,
                mixing: match &mixing {
                    Some(mixing) => Some(Side::of(mixing.as_slice::<T::Acc>()?, change.rank, change.rank)),
                    None => None,
                },
                scale: change.scale,
                rank: change.rank,
            }),
        };
        f(&Matrices {
            vocabulary,
            hidden_size,
            hidden: hidden.as_slice()?,
            weight: match self.stored {
                WeightLayout::OutIn => Side::of(weight, vocabulary, hidden_size),
                WeightLayout::InOut => Side::of(weight, hidden_size, vocabulary).t(),
            },
            weight_values: weight,
            stored: self.stored,
            bias,
            change,
        })
    }
}

/// The elements of [`Inputs`].
pub(super) struct Matrices<'a, T: Element> {
    pub(super) vocabulary: usize,
    pub(super) hidden_size: usize,
    /// Of all positions.
    pub(super) hidden: &'a [T],
    /// `(vocabulary, hidden_size)`
    pub(super) weight: Side<'a>,
    /// Its elements as they are stored.
    weight_values: &'a [T],
    stored: WeightLayout,
    pub(super) bias: Option<&'a [T]>,
    pub(super) change: Option<ChangeMatrices<'a, T::Acc>>,
}

impl<T: Element> Matrices<'_, T> {
    /// The row of the weight that belongs to an entry of the vocabulary, in the type of the arithmetic.
    pub(super) fn weight_row<'b>(&'b self, entry: usize, buffer: &'b mut Vec<T::Acc>) -> &'b [T::Acc] {
        match self.stored {
            WeightLayout::OutIn => {
                T::widened_row(&self.weight_values[entry * self.hidden_size..][..self.hidden_size], buffer)
            }
            WeightLayout::InOut => {
                let column = self.weight_values.iter().skip(entry).step_by(self.vocabulary);
                buffer.extend(column.map(|value| value.widen()));
                buffer
            }
        }
    }
}

/// The elements of a [`Change`].
pub(super) struct ChangeMatrices<'a, A> {
    /// `(r, hidden_size)`
    pub(super) a: Side<'a>,
    /// `(vocabulary, r)`
    pub(super) b: Side<'a>,
    b_values: &'a [A],
    /// `(r, r)`
    pub(super) mixing: Option<Side<'a>>,
    pub(super) scale: f64,
    pub(super) rank: usize,
}

impl<A: Element> ChangeMatrices<'_, A> {
    /// The row of b that belongs to an entry of the vocabulary.
    pub(super) fn b_row(&self, entry: usize) -> &[A] {
        &self.b_values[entry * self.rank..][..self.rank]
    }

    /// `d M`, the way back through the mixing: `(rows, r)` like `d`.
    pub(super) fn through_mixing<'d, T: Multiply<Acc = A>>(&self, d: &'d [A], rows: usize) -> Result<Cow<'d, [A]>> {
        Ok(match &self.mixing {
            Some(mixing) => Cow::Owned(T::new_product(&Side::of(d, rows, self.rank), mixing)?),
            None => Cow::Borrowed(d),
        })
    }
}
