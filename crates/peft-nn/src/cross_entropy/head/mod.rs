//! The loss from hidden states and an output head, some positions at a time.

mod composed;
mod parts;
mod pass;
mod rows;

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};

use super::targets::Targets;
use super::{CrossEntropy, CrossEntropyOptions, NAME};
use crate::WeightLayout;
use crate::checks::{ensure_dtype, ensure_float, ensure_shape, last_dim};
use crate::cpu::{Element, dispatch_float, read};
use crate::graph::{Backward, join};
use parts::Parts;
use pass::Head;

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

/// The map from hidden states to logits, `h W^T + bias + scale * (h A^T) B^T`.
#[derive(Debug, Clone, Copy)]
pub struct OutputHead<'a> {
    weight: &'a Tensor,
    layout: WeightLayout,
    bias: Option<&'a Tensor>,
    low_rank: Option<(&'a Tensor, &'a Tensor, f64)>,
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

    /// With a low-rank change of the weight, `scale * B A`: `a` is `(r, hidden_size)` and `b` is `(vocabulary, r)`.
    #[must_use]
    pub fn with_low_rank(mut self, a: &'a Tensor, b: &'a Tensor, scale: f64) -> Self {
        self.low_rank = Some((a, b, scale));
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
    /// On the CPU logits exist for a few positions at a time, and for those whose label is ignored not at all. The gradients of the sum of
    /// the losses are computed along with them, so that logits are computed once; the backward pass scales them. Only if it finds that the
    /// losses count differently, and that more is tracked than the hidden states, it computes the logits again. The gradient reaches
    /// whichever of hidden states, weight, bias and the matrices of the low-rank change are tracked; a loss that is not tracked computes
    /// none. Sums over positions are taken in f32 for 16-bit types.
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
        let (a, b) = self.low_rank.map(|(a, b, _)| (a, b)).unzip();
        let inputs = [Some(hidden), Some(self.weight), self.bias, a, b];
        let tracked = inputs.map(|input| input.is_some_and(Tensor::track_op));
        let head = Head::new(self, hidden, &targets)?;
        let (found, gradients) = dispatch_float!(NAME, hidden, T => head.run::<T>(tracked)?);
        let entropies =
            found.entropies.map(|entropies| Ok::<_, candle_core::Error>(entropies.reshape(leading)?.into_tensor()));
        let saved = LinearCrossEntropy { head, gradients: Mutex::new(Some(gradients)) };
        let losses = join(inputs, found.losses.reshape(leading)?, saved)?;
        Ok(CrossEntropy { losses, entropies: entropies.transpose()?, count })
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
        if let Some((a, b, _)) = self.low_rank {
            let r = last_dim(NAME, "low-rank matrix b", b)?;
            ensure_dtype(NAME, "low-rank matrix a", a, dtype)?;
            ensure_dtype(NAME, "low-rank matrix b", b, dtype)?;
            ensure_shape(NAME, "low-rank matrix a", a, &[r, hidden_size])?;
            ensure_shape(NAME, "low-rank matrix b", b, &[vocabulary, r])?;
        }
        Ok(vocabulary)
    }
}

struct LinearCrossEntropy {
    head: Head,
    /// Of the sum of the losses. The backward pass takes them and scales them where they are; a second one computes them again.
    gradients: Mutex<Option<Parts>>,
}

impl Backward<5> for LinearCrossEntropy {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, wanted: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
        dispatch_float!(NAME, self.head.hidden(), T => self.scaled::<T>(grad, wanted))
    }
}

impl LinearCrossEntropy {
    /// The gradients of the losses in the proportion that `grad` says.
    fn scaled<T: Element>(&self, grad: &Tensor, wanted: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
        let grad = read(grad)?;
        let factors = self.head.of_counted(grad.as_slice::<T::Acc>()?);
        let uniform = factors.windows(2).all(|pair| pair[0] == pair[1]);
        let ready = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A position has a gradient of its own in the hidden states, and shares those of the parameters.
        let ready = ready.filter(|_| uniform || wanted[1..] == [false; 4]);
        let (parts, factors) = match ready {
            Some(parts) => (parts, factors),
            None => (self.head.gradients::<T>(&factors, wanted)?, vec![T::acc(1.0); factors.len()]),
        };
        parts.finish::<T>(&self.head, &factors)
    }
}
