//! An adapter method defined outside candle-peft: one trained gain per input feature.
//!
//! `y = W (g * x) + b`, with one number of `g` for each input of each adapted linear layer. This is what IA3 does to
//! feed-forward layers.

use candle_core::{DType, Result as CandleResult, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, Error, HostKind, HostSpec, HostView, Mode, Param, ParamBuilder, ParamKey, Result,
    Site, TargetSpec,
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
        let HostSpec { cols, ref device, dtype, .. } = site.spec;
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let start = || Ok((Tensor::ones(cols, wide, device)? * self.init_gain)?);
        let gain = params.trainable(ParamKey::site(&site.path, "gain"), cols, wide, device, start)?;
        Ok(Arc::new(GainLayer { gain }))
    }
}

#[derive(Debug)]
struct GainLayer {
    gain: Param,
}

impl AdapterLayer for GainLayer {
    fn input(&self, input: &Tensor, mode: Mode) -> CandleResult<Tensor> {
        let gain = self.gain.read(mode);
        input.to_dtype(gain.dtype())?.broadcast_mul(gain)?.to_dtype(input.dtype())
    }

    fn forward(&self, _host: HostView<'_>, _input: &Tensor, output: Tensor, _mode: Mode) -> CandleResult<Tensor> {
        Ok(output)
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        let change = (self.gain.read(Mode::Infer) - 1.0)?;
        Ok(base.to_dtype(change.dtype())?.broadcast_mul(&change)?)
    }
}
