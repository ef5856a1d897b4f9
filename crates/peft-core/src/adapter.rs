//! The part of an adapter that sits at one site.

use crate::Result;
use candle_core::Tensor;
use std::fmt::Debug;

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

/// One adapter at one site.
///
/// `forward` sees both the host's input and its output so far, so additive (LoRA, TinyLoRA), multiplicative (IA3) and
/// normalising (DoRA) layers all fit.
pub trait AdapterLayer: Debug + Send + Sync {
    /// The adapted output.
    ///
    /// `input` is what the host got: activations `(.., cols)` for a linear host, ids for an embedding. `output` is what
    /// the host, and the adapters before this one, made of it, `(.., rows)` or `(.., cols)`; the result has its shape and dtype.
    fn forward(&self, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor>;

    /// The change of the weight that has the same effect as `forward` at inference, `(rows, cols)`.
    ///
    /// `base` is the weight that is about to be changed, `(rows, cols)`, with the adapters before this one folded in.
    fn delta_weight(&self, base: &Tensor) -> Result<Tensor>;

    /// The delta as an exact product of two factors, if it is one.
    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        Ok(None)
    }

    /// Restarts the layer's random numbers (dropout masks) from `seed`; layers without any ignore it.
    ///
    /// A training loop calls this before each forward pass with a seed made from its own position, so that a resumed run
    /// draws the same masks as an undisturbed one.
    fn reseed(&self, _seed: u64) {}
}
