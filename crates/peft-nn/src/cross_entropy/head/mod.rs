//! The loss from hidden states and an output head, some positions at a time.

mod composed;
mod inputs;
mod parts;
mod pass;
mod product;
mod rows;

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};

use super::targets::Targets;
use super::{CrossEntropy, CrossEntropyOptions, NAME};
use crate::checks::{ensure_dtype, ensure_float, ensure_shape, last_dim};
use crate::cpu::{dispatch_float, read, value};
use crate::graph::{Backward, Value, join};
use crate::{LowRank, WeightLayout};
use inputs::{Inputs, Wanted};
use parts::Parts;
use pass::pass;
use product::Multiply;
use rows::Position;

/// [`cross_entropy`](crate::cross_entropy) of the logits `hidden W^T + bias`, which never exist as a whole: see
/// [`OutputHead::cross_entropy`].
///
/// `hidden` is `(.., hidden_size)`, `weight` and `bias` are those of [`linear`](crate::linear), `labels` has the shape of `hidden` without
/// its last dimension.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    labels: &Tensor,
    ignore_index: i64,
) -> Result<CrossEntropy> {
    OutputHead::new(weight, layout).with_bias(bias).cross_entropy(hidden, labels, ignore_index)
}

/// The map from hidden states to logits, `h (W + change)^T + bias`.
#[derive(Debug, Clone, Copy)]
pub struct OutputHead<'a> {
    weight: &'a Tensor,
    layout: WeightLayout,
    bias: Option<&'a Tensor>,
    low_rank: Option<&'a LowRank>,
    options: CrossEntropyOptions,
}

impl<'a> OutputHead<'a> {
    /// A head of a weight alone, a matrix stored as `layout` says.
    pub fn new(weight: &'a Tensor, layout: WeightLayout) -> Self {
        Self { weight, layout, bias: None, low_rank: None, options: CrossEntropyOptions::default() }
    }

    /// With a bias, `(vocabulary)`, if there is one.
    #[must_use]
    pub fn with_bias(mut self, bias: Option<&'a Tensor>) -> Self {
        self.bias = bias;
        self
    }

    /// With a low-rank change of the weight, if there is one: its `a` is `(r, hidden_size)` and its `b` is `(vocabulary, r)`. It has the
    /// dtype of the hidden states, or is f32 beside 16-bit ones.
    #[must_use]
    pub fn with_low_rank(mut self, change: Option<&'a LowRank>) -> Self {
        self.low_rank = change;
        self
    }

    /// With logits multiplied by `scale`, finite and above zero: one over the temperature. The gradient takes it into account.
    #[must_use]
    pub fn with_logit_scale(mut self, scale: f64) -> Self {
        self.options.logit_scale = scale;
        self
    }

    /// With the [entropies](CrossEntropy::entropies) of the distributions, made in the same pass.
    #[must_use]
    pub fn with_entropies(mut self) -> Self {
        self.options.entropies = true;
        self
    }

    /// [`cross_entropy`](crate::cross_entropy) of the logits of `hidden`, `(.., hidden_size)`, for `labels` of the leading shape.
    ///
    /// On the CPU logits exist for some positions and entries of the vocabulary at a time, in 4 MiB however large the vocabulary is, and
    /// for positions whose label is ignored not at all. The gradients of the sum of the losses are computed along with them, so that
    /// logits are computed once; the backward pass multiplies those of each position with what its loss counts for.
    ///
    /// The gradients of weight, bias and the `b` of the change, which are as long as the vocabulary themselves, need all logits of a
    /// position at once: with any of them tracked, whole rows of logits take 28 MiB or 32 rows. If the losses then turn out to count
    /// differently, logits are computed again.
    ///
    /// The gradient reaches whichever of hidden states, weight, bias and the matrices of the change are tracked; a loss that is not
    /// tracked computes none. Sums over positions are taken in f32 for 16-bit types.
    pub fn cross_entropy(&self, hidden: &Tensor, labels: &Tensor, ignore_index: i64) -> Result<CrossEntropy> {
        let vocabulary = self.check(hidden)?;
        let options = self.options.with_ignore_index(ignore_index);
        options.check()?;
        let leading = &hidden.dims()[..hidden.rank() - 1];
        ensure_shape(NAME, "labels tensor", labels, leading)?;
        if !hidden.device().is_cpu() {
            return composed::cross_entropy(self, hidden, labels, options);
        }
        let targets = Targets::new(labels, vocabulary, ignore_index)?;
        let count = targets.count();
        let (a, b) = self.low_rank.map(|change| (&change.a, &change.b)).unzip();
        let mixing = self.low_rank.and_then(|change| change.mixing.as_ref());
        let operands = [Some(hidden), Some(self.weight), self.bias, a, b, mixing];
        let tracked = operands.map(|operand| operand.is_some_and(Tensor::track_op));
        let inputs = Inputs::new(self, hidden, &targets)?;
        let (found, gradients) = dispatch_float!(NAME, hidden, T => {
            let (found, gradients) = pass::<T>(&inputs, None, tracked.into())?;
            (Found::new::<T>(&inputs, &found), gradients)
        });
        let saved = LinearCrossEntropy { inputs, gradients: Mutex::new(Some(gradients)) };
        let losses = join(operands, found.losses.reshape(leading)?, saved)?;
        let entropies = match found.entropies {
            Some(entropies) => Some(entropies.reshape(leading)?.into_tensor()),
            None => None,
        };
        Ok(CrossEntropy { losses, entropies, count })
    }

    /// The size of the vocabulary, if everything fits together.
    fn check(&self, hidden: &Tensor) -> Result<usize> {
        let (vocabulary, hidden_size) = self.layout.features(self.weight)?;
        let width = last_dim(NAME, "tensor of hidden states", hidden)?;
        if width != hidden_size {
            bail!("{NAME}: hidden states of length {width} do not fit a weight for {hidden_size} ({:?})", self.layout);
        }
        ensure_float(NAME, "tensor of hidden states", hidden)?;
        let dtype = hidden.dtype();
        ensure_dtype(NAME, "weight", self.weight, dtype)?;
        if let Some(bias) = self.bias {
            ensure_dtype(NAME, "bias", bias, dtype)?;
            ensure_shape(NAME, "bias", bias, &[vocabulary])?;
        }
        if let Some(change) = self.low_rank {
            change.check(NAME, dtype, vocabulary, hidden_size)?;
        }
        Ok(vocabulary)
    }
}

/// What the forward pass finds, at all positions.
struct Found {
    losses: Value,
    entropies: Option<Value>,
}

impl Found {
    fn new<T: Multiply>(inputs: &Inputs, found: &[Position]) -> Self {
        let positions = inputs.hidden.dims()[0];
        let all = |of: fn(&Position) -> f64| {
            let mut all = vec![T::acc(0.0); positions];
            for (counted, found) in inputs.counted.iter().zip(found) {
                all[counted.position] = T::acc(of(found));
            }
            value(all, positions)
        };
        Self { losses: all(Position::loss), entropies: inputs.options.entropies.then(|| all(Position::entropy)) }
    }
}

struct LinearCrossEntropy {
    inputs: Inputs,
    /// Of the sum of the losses. The backward pass takes them and scales them where they are; a second one computes them again.
    gradients: Mutex<Option<Parts>>,
}

impl Backward<6> for LinearCrossEntropy {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 6]) -> Result<[Option<Tensor>; 6]> {
        dispatch_float!(NAME, self.inputs.hidden, T => self.scaled::<T>(grad, wanted.into()))
    }
}

impl LinearCrossEntropy {
    /// The gradients of the losses in the proportion that `grad` says.
    fn scaled<T: Multiply>(&self, grad: &Tensor, wanted: Wanted) -> Result<[Option<Tensor>; 6]> {
        let grad = read(grad)?;
        let factors = self.inputs.of_counted(grad.as_slice::<T::Acc>()?);
        let uniform = factors.windows(2).all(|pair| pair[0] == pair[1]);
        let ready = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (parts, factors) = match ready.filter(|parts| uniform || !parts.of_entries()) {
            Some(parts) => (parts, factors),
            None => (pass::<T>(&self.inputs, Some(&factors), wanted)?.1, vec![T::acc(1.0); factors.len()]),
        };
        parts.finish::<T>(&self.inputs, &factors, wanted)
    }
}
