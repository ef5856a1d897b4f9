//! The positions that count, some at a time: their logits, losses and gradients.

use candle_core::{Result, Shape, Tensor};
use num_traits::Zero;

use super::OutputHead;
use super::parts::{Parts, Sum, add_scaled};
use super::rows::{AtPosition, Change, Rows};
use crate::WeightLayout;
use crate::cpu::{Element, elements, read, value};
use crate::cross_entropy::CrossEntropyOptions;
use crate::cross_entropy::targets::Targets;
use crate::graph::{Value, matmul};

/// Logits that exist at a time: enough rows for a matrix product to run at its speed, few enough to be no matter of memory. In f32 they
/// take 28 MiB; from 32 on an allocator asks the system for fresh pages every time. Fewer where unit tests shall see many pieces.
pub(super) const LOGITS: usize = if cfg!(test) { 1 << 16 } else { 7 << 20 };
const FEWEST_ROWS: usize = 32;

/// An output head and what is to be predicted from which hidden states, outside any graph.
pub(super) struct Head {
    /// `(positions, hidden_size)`
    hidden: Tensor,
    /// The shape it came in.
    shape: Shape,
    /// A view as `(vocabulary, hidden_size)`.
    weight: Tensor,
    layout: WeightLayout,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
    counted: Vec<Counted>,
    options: CrossEntropyOptions,
}

/// What the forward pass finds at each position.
pub(super) struct Found {
    pub(super) losses: Value,
    pub(super) entropies: Option<Value>,
}

struct LowRank {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

/// A position whose label is not ignored.
#[derive(Clone, Copy)]
pub(super) struct Counted {
    pub(super) position: usize,
    pub(super) target: u32,
}

impl Head {
    pub(super) fn new(head: &OutputHead<'_>, hidden: &Tensor, targets: &Targets) -> Result<Self> {
        let own = |tensor: &Tensor| tensor.detach().contiguous();
        let weight = head.weight.detach();
        // Either order of a contiguous matrix is multiplied as it lies.
        let weight = if weight.t()?.is_contiguous() { weight } else { weight.contiguous()? };
        let low_rank = match head.low_rank {
            Some((a, b, scale)) => Some(LowRank { a: own(a)?, b: own(b)?, scale }),
            None => None,
        };
        let counted = |(position, target): (usize, &Option<u32>)| Some(Counted { position, target: (*target)? });
        let positions = targets.as_slice().len();
        Ok(Self {
            hidden: own(hidden)?.reshape((positions, weight.elem_count() / head.layout.features(&weight)?.0.max(1)))?,
            shape: hidden.shape().clone(),
            weight: head.layout.out_in(&weight)?,
            layout: head.layout,
            bias: head.bias.map(own).transpose()?,
            low_rank,
            counted: targets.as_slice().iter().enumerate().filter_map(counted).collect(),
            options: head.options,
        })
    }

    pub(super) fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn counted(&self) -> &[Counted] {
        &self.counted
    }

    /// Those of the values of all positions that belong to positions that count.
    pub(super) fn of_counted<A: Copy>(&self, values: &[A]) -> Vec<A> {
        self.counted.iter().map(|counted| values[counted.position]).collect()
    }

    /// The shapes of weight, bias, a and b.
    pub(super) fn parameter_shapes(&self) -> Result<[Shape; 4]> {
        let (vocabulary, hidden_size) = self.weight.dims2()?;
        let r = self.low_rank.as_ref().map_or(Ok(0), |low_rank| low_rank.a.dim(0))?;
        let weight = match self.layout {
            WeightLayout::OutIn => (vocabulary, hidden_size),
            WeightLayout::InOut => (hidden_size, vocabulary),
        };
        Ok([weight.into(), vocabulary.into(), (r, hidden_size).into(), (vocabulary, r).into()])
    }

    /// What there is at all positions, and those gradients of the sum of the losses that are wanted: of hidden states, weight, bias, a and b.
    pub(super) fn run<T: Element>(&self, wanted: [bool; 5]) -> Result<(Found, Parts)> {
        let (counted, parts) = self.pass::<T>(None, wanted)?;
        let positions = self.hidden.dim(0)?;
        let all = |of: fn(&AtPosition<T>) -> T::Acc| {
            let mut all = vec![T::Acc::zero(); positions];
            for (counted, found) in self.counted.iter().zip(&counted) {
                all[counted.position] = of(found);
            }
            value(all, positions)
        };
        let entropies = self.options.entropies.then(|| all(|found| found.entropy));
        Ok((Found { losses: all(|found| found.loss), entropies }, parts))
    }

    /// The gradients of the sum of the losses times `factors`, one for each position that counts.
    pub(super) fn gradients<T: Element>(&self, factors: &[T::Acc], wanted: [bool; 5]) -> Result<Parts> {
        Ok(self.pass::<T>(Some(factors), wanted)?.1)
    }

    fn pass<T: Element>(&self, factors: Option<&[T::Acc]>, wanted: [bool; 5]) -> Result<(Vec<AtPosition<T>>, Parts)> {
        let (vocabulary, hidden_size) = self.weight.dims2()?;
        let [wants_hidden, rest @ ..] = wanted;
        let shapes = self.parameter_shapes()?;
        let mut sums = [0, 1, 2, 3].map(|i| rest[i].then(|| Sum::<T>::of(shapes[i].elem_count())));
        let mut hidden_gradients = Vec::with_capacity(if wants_hidden { self.counted.len() * hidden_size } else { 0 });
        let mut found = Vec::with_capacity(self.counted.len());
        let bias = self.bias.as_ref().map(read).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.as_slice::<T>()).transpose()?;

        let buffers = if self.low_rank.is_some() { 2 } else { 1 };
        // Where the gradient of the weight is kept anyway, half as many logits are allowed: each piece adds to all of it.
        let logits = if rest[0] { LOGITS.max(vocabulary * hidden_size / 2) } else { LOGITS };
        let rows = FEWEST_ROWS.max(logits / buffers / vocabulary.max(1));
        for counted in self.counted.chunks(rows) {
            let hidden = self.gather::<T>(counted)?;
            let mut logits = elements::<T>(matmul(&hidden, &self.weight.t()?)?)?;
            let low = match &self.low_rank {
                Some(LowRank { a, .. }) => Some(matmul(&hidden, &a.t()?)?.into_tensor()),
                None => None,
            };
            let change = match (&self.low_rank, &low) {
                (Some(LowRank { b, scale, .. }), Some(low)) => {
                    Some(Change { logits: elements::<T>(matmul(low, &b.t()?)?)?, scale: *scale })
                }
                _ => None,
            };
            let rows = Rows {
                vocabulary,
                counted,
                bias,
                change,
                factors: factors.map(|factors| &factors[found.len()..][..counted.len()]),
                options: self.options,
            };
            found.extend(rows.read(&mut logits, wanted.contains(&true)));
            drop(rows);
            if !wanted.contains(&true) {
                continue;
            }

            let grad = value(logits, (counted.len(), vocabulary)).into_tensor();
            let [weight, bias, a, b] = &mut sums;
            // The gradient of `h A^T`, but for the scale.
            let low_grad = match &self.low_rank {
                Some(LowRank { b, .. }) if wants_hidden || a.is_some() => Some(matmul(&grad, b)?.into_tensor()),
                _ => None,
            };
            if wants_hidden {
                let mut gradients = elements::<T>(matmul(&grad, &self.weight)?)?;
                if let (Some(LowRank { a, scale, .. }), Some(low_grad)) = (&self.low_rank, &low_grad) {
                    gradients = add_scaled(&gradients, &elements::<T>(matmul(low_grad, a)?)?, *scale);
                }
                hidden_gradients.extend(gradients);
            }
            if let Some(weight) = weight {
                let product = match self.layout {
                    WeightLayout::OutIn => matmul(&grad.t()?, &hidden)?,
                    WeightLayout::InOut => matmul(&hidden.t()?, &grad)?,
                };
                weight.add(elements(product)?, 1.0);
            }
            if let Some(bias) = bias {
                bias.add_rows(&grad)?;
            }
            if let (Some(sum), Some(LowRank { scale, .. }), Some(low_grad)) = (a, &self.low_rank, &low_grad) {
                sum.add(elements(matmul(&low_grad.t()?, &hidden)?)?, *scale);
            }
            if let (Some(sum), Some(LowRank { scale, .. }), Some(low)) = (b, &self.low_rank, &low) {
                sum.add(elements(matmul(&grad.t()?, low)?)?, *scale);
            }
        }
        Ok((found, Parts::new::<T>(wants_hidden.then_some(hidden_gradients), sums)))
    }

    /// The hidden states of some positions.
    fn gather<T: Element>(&self, counted: &[Counted]) -> Result<Tensor> {
        let (first, last) = match counted {
            [first, .., last] => (first.position, last.position),
            [only] => (only.position, only.position),
            [] => (0, 0),
        };
        if last + 1 - first == counted.len() {
            return self.hidden.narrow(0, first, counted.len());
        }
        let width = self.hidden.dim(1)?;
        let hidden = read(&self.hidden)?;
        let hidden = hidden.as_slice::<T>()?;
        let mut rows = Vec::with_capacity(counted.len() * width);
        for counted in counted {
            rows.extend_from_slice(&hidden[counted.position * width..][..width]);
        }
        Ok(value(rows, (counted.len(), width)).into_tensor())
    }
}
