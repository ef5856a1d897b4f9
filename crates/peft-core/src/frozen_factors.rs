//! A small matrix between two frozen factors.

use crate::{Dropout, HostKind, LoraFactors, Mode, Result, Site, SvdFactors, WeightLayout};
use candle_core::Tensor;
use peft_nn::{LowRank, embedding, linear};

/// Frozen A `(r, cols)` and B `(rows, r)` of one site, to compute with `delta W = B R A`.
///
/// The layers of TinyLoRA and LoRA-XS differ in where R `(r, r)` comes from; they hand it to each call, tracked in training, so that
/// the gradient reaches what R is made of and neither factor.
#[derive(Debug)]
pub struct FrozenFactors {
    kind: HostKind,
    a: Tensor,
    b: Tensor,
    embed_scale: f64,
    dropout: Dropout,
}

impl FrozenFactors {
    /// The factors of this site. `dropout` drops features of the input; for an embedding, entries of looked-up rows of B.
    pub fn new(site: &Site, SvdFactors { a, b }: SvdFactors, dropout: Dropout) -> Self {
        Self { kind: site.spec.kind, a, b, embed_scale: site.spec.embed_scale, dropout }
    }

    /// `output + B R A x` for a linear layer, `output + scale * (B[ids] R A)` for an embedding.
    pub fn forward(&self, r: &Tensor, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let change = match self.kind {
            HostKind::Embedding => {
                let r = if self.embed_scale == 1.0 { r.clone() } else { (r * self.embed_scale)? };
                let rows = self.dropout.forward(&embedding(input, &self.b)?, mode)?;
                linear(&linear(&rows, &r, WeightLayout::InOut, None)?, &self.a, WeightLayout::InOut, None)?
            }
            _ => {
                let xs = self.dropout.forward(&input.to_dtype(self.a.dtype())?, mode)?;
                let low = linear(&xs, &self.a, WeightLayout::OutIn, None)?;
                linear(&linear(&low, r, WeightLayout::OutIn, None)?, &self.b, WeightLayout::OutIn, None)?
            }
        };
        let dtype = output.dtype();
        (output.to_dtype(change.dtype())? + change)?.to_dtype(dtype)
    }

    /// `scale * B R A` for a linear layer whose input is not dropped, to be computed together with the layer.
    pub fn low_rank(
        &self,
        mode: Mode,
        scale: f64,
        r: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Option<LowRank>> {
        if self.kind == HostKind::Embedding || self.dropout.drops(mode) {
            return Ok(None);
        }
        Ok(Some(LowRank::new(self.a.clone(), self.b.clone()).with_mixing(r()?).with_scale(scale)))
    }

    /// `B R A`, `(rows, cols)`.
    pub fn delta(&self, r: &Tensor) -> Result<Tensor> {
        Ok(self.b.matmul(r)?.matmul(&self.a)?)
    }

    /// The same as two factors: A, and B R.
    pub fn lora_factors(&self, r: &Tensor) -> Result<LoraFactors> {
        Ok(LoraFactors { a: self.a.clone(), b: self.b.matmul(r)?, scale: 1.0 })
    }

    /// Restarts the masks of dropout.
    pub fn reseed(&self, seed: u64) {
        self.dropout.reseed(seed);
    }
}
