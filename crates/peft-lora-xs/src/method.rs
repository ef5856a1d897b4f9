//! LoRA-XS as an adapter method: from a config and sites to layers.

use crate::config::{LoraXsBias, LoraXsConfig};
use crate::layer::LoraXsLayer;
use candle_core::{Device, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, BiasMode, Dropout, FrozenFactors, HostKind, HostSpec, Param, ParamBuilder, ParamKey,
    Result, SingularValues, Site, SiteShapes, SvdFactors, TargetSpec, adapter_dtype,
};
use std::sync::Arc;

/// The tensors of one module, below its path.
const A: &str = "lora_xs_A";
const B: &str = "lora_xs_B";
const R: &str = "lora_xs_R";

impl AdapterMethod for LoraXsConfig {
    const PEFT_TYPE: &'static str = "LORA_XS";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn bias(&self) -> BiasMode {
        match self.bias {
            LoraXsBias::None => BiasMode::None,
            LoraXsBias::All => BiasMode::All,
            LoraXsBias::LoraXsOnly => BiasMode::Targets,
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        matches!(host.kind, HostKind::Linear | HostKind::Embedding)
    }

    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = Site::fan_in_fan_out(sites).unwrap_or(self.fan_in_fan_out);
    }

    fn order_matters(&self) -> bool {
        false
    }

    /// # Errors
    /// A checkpoint must hold A, B and R of every site, a compact one R alone.
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let factors = SvdFactors::frozen(sites, self.r, SingularValues::Input, (A, B), params)?;
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for ((index, site), factors) in sites.iter().enumerate().zip(factors) {
            let r = self.middle(site, params)?;
            let dropout = Dropout::new(self.lora_xs_dropout as f32, index as u64);
            layers.push(Arc::new(LoraXsLayer::new(FrozenFactors::new(site, factors, dropout), r, self.scaling())));
        }
        Ok(layers)
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        let (_, cols) = tensors.get(A)?.dims2().ok()?;
        let (rows, _) = tensors.get(B)?.dims2().ok()?;
        Some((rows, cols))
    }
}

impl LoraXsConfig {
    /// The trained matrix of a site; a fresh one is drawn in f32.
    fn middle(&self, site: &Site, params: &mut ParamBuilder<'_>) -> Result<Param> {
        let HostSpec { dtype, ref device, .. } = site.spec;
        let r = SvdFactors::rank(self.r, &site.spec);
        let fresh = if self.init_std > 0.0 { params.rng().normal(0.0, self.init_std, r * r) } else { vec![0.0; r * r] };
        params.trainable(ParamKey::site(&site.path, R), (r, r), adapter_dtype(dtype), device, || {
            Ok(Tensor::from_vec(fresh, (r, r), &Device::Cpu)?)
        })
    }
}
