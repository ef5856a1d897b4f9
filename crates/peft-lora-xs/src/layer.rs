//! LoRA-XS at one site.

use candle_core::Tensor;
use peft_core::{AdapterLayer, FrozenFactors, HostView, LoraFactors, LowRank, Mode, Param, Result};

/// `delta W = scaling * B R A`.
#[derive(Debug)]
pub(crate) struct LoraXsLayer {
    factors: FrozenFactors,
    /// `(r, r)`
    r: Param,
    scaling: f64,
}

impl LoraXsLayer {
    pub(crate) fn new(factors: FrozenFactors, r: Param, scaling: f64) -> Self {
        Self { factors, r, scaling }
    }

    /// `scaling * R`.
    fn mixing(&self, mode: Mode) -> candle_core::Result<Tensor> {
        self.r.read(mode) * self.scaling
    }
}

impl AdapterLayer for LoraXsLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        self.factors.forward(&self.mixing(mode)?, input, output, mode)
    }

    fn low_rank(&self, mode: Mode) -> candle_core::Result<Option<LowRank>> {
        self.factors.low_rank(mode, self.scaling, || Ok(self.r.read(mode).clone()))
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
