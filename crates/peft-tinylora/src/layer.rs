//! TinyLoRA at one site.

use candle_core::Tensor;
use peft_core::{AdapterLayer, Dropout, HostKind, HostView, LoraFactors, Mode, Param, Result, WeightLayout};
use peft_nn::{embedding, linear};

/// `y + B R A x` for a linear layer, `y + scale * (B[ids] R A)` for an embedding.
#[derive(Debug)]
pub(crate) struct TinyLoraLayer {
    kind: HostKind,
    /// `(r, cols)`
    a: Tensor,
    /// `(rows, r)`
    b: Tensor,
    /// `(u, r * r)`: each row is one matrix, row by row.
    p: Tensor,
    /// `(u)`, shared by the layers of a group.
    v: Param,
    embed_scale: f64,
    dropout: Dropout,
}

impl TinyLoraLayer {
    /// A layer from `a` `(r, cols)`, `b` `(rows, r)`, `p` `(u, r, r)` and `v` `(u)`.
    pub(crate) fn new(
        (kind, embed_scale): (HostKind, f64),
        (a, b): (Tensor, Tensor),
        p: &Tensor,
        v: Param,
        dropout: Dropout,
    ) -> Result<Self> {
        Ok(Self { kind, a, b, p: p.flatten(1, 2)?, v, embed_scale, dropout })
    }

    /// `R = sum_i v[i] P[i]`, `(r, r)`.
    fn mixing(&self, mode: Mode) -> candle_core::Result<Tensor> {
        let r = self.a.dim(0)?;
        let v = self.v.read(mode).to_dtype(self.p.dtype())?.to_device(self.p.device())?;
        linear(&v.unsqueeze(0)?, &self.p, WeightLayout::InOut, None)?.reshape((r, r))
    }
}

impl AdapterLayer for TinyLoraLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let r = self.mixing(mode)?;
        let change = match self.kind {
            HostKind::Embedding => {
                let r = if self.embed_scale == 1.0 { r } else { (r * self.embed_scale)? };
                let rows = self.dropout.forward(&embedding(input, &self.b)?, mode)?;
                linear(&linear(&rows, &r, WeightLayout::InOut, None)?, &self.a, WeightLayout::InOut, None)?
            }
            _ => {
                let xs = self.dropout.forward(&input.to_dtype(self.a.dtype())?, mode)?;
                let low = linear(&xs, &self.a, WeightLayout::OutIn, None)?;
                linear(&linear(&low, &r, WeightLayout::OutIn, None)?, &self.b, WeightLayout::OutIn, None)?
            }
        };
        let dtype = output.dtype();
        (output.to_dtype(change.dtype())? + change)?.to_dtype(dtype)
    }

    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        Ok(self.b.matmul(&self.mixing(Mode::Infer)?)?.matmul(&self.a)?)
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        let b = self.b.matmul(&self.mixing(Mode::Infer)?)?;
        Ok(Some(LoraFactors { a: self.a.clone(), b, scale: 1.0 }))
    }

    fn reseed(&self, seed: u64) {
        self.dropout.reseed(seed);
    }
}
