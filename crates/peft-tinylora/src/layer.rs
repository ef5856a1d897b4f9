//! TinyLoRA at one site.

use candle_core::Tensor;
use peft_core::{AdapterLayer, FrozenFactors, HostView, LoraFactors, LowRank, Mode, Param, Result};
use peft_nn::combination;

/// `delta W = B R A` with `R = sum_i v[i] P[i]`.
#[derive(Debug)]
pub(crate) struct TinyLoraLayer {
    factors: FrozenFactors,
    /// `(u, r, r)`
    p: Tensor,
    /// `(u)`, shared by the layers of a group.
    v: Param,
}

impl TinyLoraLayer {
    /// A layer from its factors, `p` `(u, r, r)` and `v` `(u)`.
    pub(crate) fn new(factors: FrozenFactors, p: Tensor, v: Param) -> Self {
        Self { factors, p, v }
    }

    /// `R = sum_i v[i] P[i]`, `(r, r)`.
    fn mixing(&self, mode: Mode) -> candle_core::Result<Tensor> {
        let v = self.v.read(mode).to_dtype(self.p.dtype())?.to_device(self.p.device())?;
        combination(&v, &self.p)
    }
}

impl AdapterLayer for TinyLoraLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        self.factors.forward(&self.mixing(mode)?, input, output, mode)
    }

    fn low_rank(&self, mode: Mode) -> candle_core::Result<Option<LowRank>> {
        self.factors.low_rank(mode, 1.0, || self.mixing(mode))
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
