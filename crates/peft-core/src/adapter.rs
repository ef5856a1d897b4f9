//! The part of an adapter that sits at one site.

use crate::{BaseWeight, Error, Result, WeightLayout};
use candle_core::{Tensor, TensorId};
use peft_nn::LowRank;
use std::fmt::Debug;
use std::sync::Arc;

/// Whether a forward pass is differentiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Trainable parameters are tracked and dropout is on.
    Train,
    /// Nothing is tracked and dropout is off.
    #[default]
    Infer,
}

/// A weight delta as a product: `delta = scale * b a`, with `a` `(r, cols)` and `b` `(rows, r)`.
#[derive(Clone, Debug)]
pub struct LoraFactors {
    /// The right factor, `(r, cols)`.
    pub a: Tensor,
    /// The left factor, `(rows, r)`.
    pub b: Tensor,
    /// What the product is multiplied with (`lora_alpha / r` in LoRA's terms).
    pub scale: f64,
}

/// What a host shows an adapter layer in a forward pass: itself, as the adapters before this one have made it.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'a> {
    weight: &'a Tensor,
    layout: WeightLayout,
    bias: Option<&'a Tensor>,
    before: &'a [Arc<dyn AdapterLayer>],
}

impl<'a> HostView<'a> {
    /// A host that computes with this weight, stored in this layout, and this bias.
    pub fn new(weight: &'a Tensor, layout: WeightLayout, bias: Option<&'a Tensor>) -> Self {
        Self { weight, layout, bias, before: &[] }
    }

    /// The output for `input` of a linear host with nothing but this change of its weight.
    pub(crate) fn linear(self, input: &Tensor, change: Option<&LowRank>) -> candle_core::Result<Tensor> {
        let Self { weight, layout, bias, .. } = self;
        match change {
            Some(change) => peft_nn::linear_low_rank(input, weight, layout, bias, change),
            None => peft_nn::linear(input, weight, layout, bias),
        }
    }

    /// The same host after these adapters.
    pub(crate) fn after(self, before: &'a [Arc<dyn AdapterLayer>]) -> Self {
        Self { before, ..self }
    }

    /// The weight `(rows, cols)` with the adapters before this one folded in: a view of the host's own when there are none.
    ///
    /// Of those adapters it holds the values and no graph.
    pub fn weight(&self) -> candle_core::Result<Tensor> {
        let own = BaseWeight::Dense { weight: self.weight.clone(), layout: self.layout };
        let folded =
            self.before.iter().try_fold(own, |base, layer| base.plus(&layer.delta_weight(&base.canonical()?)?))?;
        Ok(folded.canonical()?)
    }

    /// Which tensor [`HostView::weight`] is, if it is the host's own and no adapter before this one changes it.
    pub fn own_weight(&self) -> Option<TensorId> {
        self.before.is_empty().then(|| self.weight.id())
    }

    /// The bias with the adapters before this one folded in, tracked in training as far as it is trained.
    pub fn bias(&self, mode: Mode) -> candle_core::Result<Option<Tensor>> {
        let own = self.bias.cloned();
        self.before.iter().try_fold(own, |bias, layer| {
            let change = layer.delta_bias(bias.as_ref(), mode)?;
            Ok(plus_bias(bias, change)?)
        })
    }
}

/// A bias with a change added, in the dtype of the bias.
pub(crate) fn plus_bias(bias: Option<Tensor>, change: Option<Tensor>) -> Result<Option<Tensor>> {
    match (bias, change) {
        (bias, None) => Ok(bias),
        (None, Some(_)) => Err(Error::NoBias),
        (Some(bias), Some(change)) => Ok(Some((bias.to_dtype(change.dtype())? + change)?.to_dtype(bias.dtype())?)),
    }
}

/// One adapter at one site.
///
/// A layer sees the host's input before the host does ([`AdapterLayer::input`]), and its output after ([`AdapterLayer::forward`]).
/// So additive (LoRA, TinyLoRA), multiplicative (IA3) and normalising (DoRA) layers all fit. Several adapters nest: the first one
/// attached is the innermost, and what a later one sees is the host with the earlier ones. Merging folds them in that order.
pub trait AdapterLayer: Debug + Send + Sync {
    /// What the host, and the adapters before this one, get in place of `input`.
    ///
    /// Most methods leave it alone; IA3 scales the features that enter a feed-forward layer.
    fn input(&self, input: &Tensor, _mode: Mode) -> candle_core::Result<Tensor> {
        Ok(input.clone())
    }

    /// The adapted output.
    ///
    /// `input` is what this layer's [`AdapterLayer::input`] got: activations `(.., cols)` for a linear host, ids for an
    /// embedding. `output` is what the host, and the adapters before this one, made of it, `(.., rows)` or `(.., cols)`; the result
    /// has its shape and dtype. `host` is the host in the state that made `output`.
    fn forward(&self, host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor>;

    /// This layer as a low-rank change of a linear host's weight, tracked in training, if in this mode it is that and nothing else.
    ///
    /// A host asks the innermost layer, and computes with an answer and its own weight in one product: [`AdapterLayer::input`] and
    /// [`AdapterLayer::forward`], which must come to the same, are not called then.
    fn low_rank(&self, _mode: Mode) -> candle_core::Result<Option<LowRank>> {
        Ok(None)
    }

    /// The change of the weight that has the same effect as `input` and `forward` at inference, `(rows, cols)`.
    ///
    /// `base` is the weight that is about to be changed, `(rows, cols)`, with the adapters before this one folded in.
    fn delta_weight(&self, base: &Tensor) -> Result<Tensor>;

    /// The change of the host's bias `(rows)` that belongs to [`AdapterLayer::delta_weight`], if there is any.
    ///
    /// `bias` is the one that is about to be changed; `None` when the host has none. A change of a bias that is not there is an
    /// error of whoever merges.
    fn delta_bias(&self, _bias: Option<&Tensor>, _mode: Mode) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The delta as an exact product of two factors, if it is one and there is no change of the bias.
    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        Ok(None)
    }

    /// Restarts the layer's random numbers (dropout masks) from `seed`; layers without any ignore it.
    ///
    /// A training loop calls this before each forward pass with a seed made from its own position, so that a resumed run
    /// draws the same masks as an undisturbed one.
    fn reseed(&self, _seed: u64) {}
}
