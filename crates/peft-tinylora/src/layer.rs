//! TinyLoRA at one site.

use candle_core::Tensor;
use peft_core::{AdapterLayer, FrozenFactors, HostView, LoraFactors, Mode, Param, Result, WeightLayout};
use peft_nn::linear;

/// `delta W = B R A` with `R = sum_i v[i] P[i]`.
#[derive(Debug)]
pub(crate) struct TinyLoraLayer {
    factors: FrozenFactors,
    /// `(u, r * r)`: each row is one matrix, row by row.
    p: Tensor,
    /// `(u)`, shared by the layers of a group.
    v: Param,
}

impl TinyLoraLayer {
    /// A layer from its factors, `p` `(u, r, r)` and `v` `(u)`.
    pub(crate) fn new(factors: FrozenFactors, p: &Tensor, v: Param) -> Result<Self> {
        Ok(Self { factors, p: p.flatten(1, 2)?, v })
    }

    /// `R = sum_i v[i] P[i]`, `(r, r)`.
    fn mixing(&self, mode: Mode) -> candle_core::Result<Tensor> {
        let r = self.factors.rank()?;
        let v = self.v.read(mode).to_dtype(self.p.dtype())?.to_device(self.p.device())?;
        linear(&v.unsqueeze(0)?, &self.p, WeightLayout::InOut, None)?.reshape((r, r))
    }
}

impl AdapterLayer for TinyLoraLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        self.factors.forward(&self.mixing(mode)?, input, output, mode)
    }

    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        self.factors.delta(&self.mixing(Mode::Infer)?)
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        self.factors.lora_factors(&self.mixing(Mode::Infer)?).map(Some)
    }

    fn reseed(&self, seed: u64) {
        self.factors.reseed(seed);
    }
}
