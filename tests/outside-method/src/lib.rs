//! Output scaling: `y = (1 + g) * (W x)` with one trained number per output, which no method of candle-peft does.

use candle_core::{DType, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, HostKind, HostSpec, Mode, Param, ParamBuilder, ParamKey, Result, Site, SiteShapes, TargetSpec,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The method: its config is all there is to say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    /// Which modules are scaled.
    #[serde(flatten)]
    pub targets: TargetSpec,
}

impl AdapterMethod for Scale {
    const PEFT_TYPE: &'static str = "OUTSIDE_SCALE";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let mut layers: Vec<Arc<dyn AdapterLayer>> = vec![];
        for site in sites {
            let (rows, device) = (site.spec.rows, &site.spec.device);
            let dtype = if site.spec.dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let key = ParamKey::site(&site.path, "scale_g");
            let gain = params.trainable(key, rows, dtype, device, || Ok(Tensor::zeros(rows, dtype, device)?))?;
            // A bias is added after the weight, and scaling it too would be more than a change of the weight.
            layers.push(Arc::new(ScaleLayer { gain, weight: site.base.canonical()? }));
        }
        Ok(layers)
    }

    fn host_shape(&self, _: &SiteShapes) -> Option<(usize, usize)> {
        None
    }
}

#[derive(Debug)]
struct ScaleLayer {
    gain: Param,
    weight: Tensor,
}

impl AdapterLayer for ScaleLayer {
    fn forward(&self, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let gain = self.gain.read(mode);
        let dtype = gain.dtype();
        let product = input.to_dtype(dtype)?.broadcast_matmul(&self.weight.to_dtype(dtype)?.t()?)?;
        (output.to_dtype(dtype)? + product.broadcast_mul(gain)?)?.to_dtype(output.dtype())
    }

    fn delta_weight(&self, _: &Tensor) -> Result<Tensor> {
        let gain = self.gain.read(Mode::Infer);
        Ok(self.weight.to_dtype(gain.dtype())?.broadcast_mul(&gain.unsqueeze(1)?)?)
    }
}
