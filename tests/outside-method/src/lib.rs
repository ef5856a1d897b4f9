//! An adapter method defined outside candle-peft: one trained gain per input feature.
//!
//! `y = W (g * x) + b`, with one number of `g` for each input of each adapted linear layer. This is what IA3 does to
//! feed-forward layers.

use candle_core::{DType, Module, Result as CandleResult, Tensor};
use peft_core::nn::Linear;
use peft_core::{
    AdapterLayer, AdapterMethod, Error, HostKind, HostSpec, Mode, Param, ParamBuilder, ParamKey, Result, Site,
    TargetSpec, WeightLayout,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The config, and with it the method.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct GainConfig {
    /// What every gain starts with; 1 leaves the model as it is.
    pub init_gain: f64,
    /// Which linear layers get gains.
    #[serde(flatten)]
    pub targets: TargetSpec,
}

impl Default for GainConfig {
    fn default() -> Self {
        Self { init_gain: 1.0, targets: TargetSpec::default() }
    }
}

impl AdapterMethod for GainConfig {
    const PEFT_TYPE: &'static str = "GAIN";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn validate(&self) -> Result<()> {
        if self.init_gain.is_finite() {
            Ok(())
        } else {
            Err(Error::config(format!("`init_gain` is {}; it must be finite", self.init_gain)))
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        sites.iter().map(|site| self.layer(site, params)).collect()
    }
}

impl GainConfig {
    fn layer(&self, site: &Site, params: &mut ParamBuilder<'_>) -> Result<Arc<dyn AdapterLayer>> {
        let HostSpec { cols, ref device, dtype, layout, .. } = site.spec;
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let start = || Ok((Tensor::ones(cols, wide, device)? * self.init_gain)?);
        let gain = params.trainable(ParamKey::site(&site.path, "gain"), cols, wide, device, start)?;
        let weight = site.base.stored()?.to_dtype(wide)?;
        let base = match layout {
            WeightLayout::InOut => Linear::from_transposed(weight, None),
            _ => Linear::new(weight, None),
        };
        Ok(Arc::new(GainLayer { gain, base }))
    }
}

#[derive(Debug)]
struct GainLayer {
    gain: Param,
    /// The frozen weight.
    base: Linear,
}

impl AdapterLayer for GainLayer {
    fn forward(&self, input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
        let change = (self.gain.read(mode) - 1.0)?;
        let input = input.to_dtype(change.dtype())?.broadcast_mul(&change)?;
        (output.to_dtype(change.dtype())? + self.base.forward(&input)?)?.to_dtype(output.dtype())
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        let change = (self.gain.read(Mode::Infer) - 1.0)?;
        Ok(base.to_dtype(change.dtype())?.broadcast_mul(&change)?)
    }
}
