//! VeRA as an adapter method: from a config and sites to layers.

use crate::config::{VeraBias, VeraConfig};
use crate::layer::VeraLayer;
use crate::projections::Projections;
use candle_core::{Device, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, BiasMode, Dropout, HostKind, HostSpec, ModuleNames, Param, ParamBuilder, ParamKey,
    Result, Site, TargetSpec, adapter_dtype, lora_targets, value_dtype,
};
use std::sync::Arc;

/// The trained vectors of one module, below its path.
const LAMBDA_B: &str = "vera_lambda_b";
const LAMBDA_D: &str = "vera_lambda_d";

impl AdapterMethod for VeraConfig {
    const PEFT_TYPE: &'static str = "VERA";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    /// Those of LoRA, but for Phi, where layers of several shapes would share the projections.
    fn default_targets(&self, model_type: &str) -> Option<ModuleNames> {
        match model_type {
            "phi" => Some(ModuleNames::list(["q_proj", "v_proj"])),
            other => lora_targets(other),
        }
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn bias(&self) -> BiasMode {
        match self.bias {
            VeraBias::None => BiasMode::None,
            VeraBias::All => BiasMode::All,
            VeraBias::VeraOnly => BiasMode::Targets,
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = Site::fan_in_fan_out(sites).unwrap_or(self.fan_in_fan_out);
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[LAMBDA_B, LAMBDA_D, "vera_A", "vera_B"]
    }

    /// # Errors
    /// A checkpoint must hold both vectors of every site and, with `save_projection`, A and B.
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        // Before anything is made: what a config of somebody else calls the rank may be larger than any memory.
        for site in sites {
            params.require(&ParamKey::site(&site.path, LAMBDA_D), self.r)?;
        }
        let mut projections = Projections::new(self, sites, params)?;
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for (index, site) in sites.iter().enumerate() {
            let (b, d) = self.fresh(site.spec.rows, params);
            let lambda_b = vector(site, LAMBDA_B, b, params)?;
            let lambda_d = vector(site, LAMBDA_D, d, params)?;
            let dropout = Dropout::new(self.vera_dropout as f32, index as u64);
            layers.push(Arc::new(VeraLayer::new(projections.of(&site.spec)?, lambda_b, lambda_d, dropout)));
        }
        Ok(layers)
    }

    /// The vectors tell `r` and `rows`, and nothing tells `cols`.
    fn needs_base(&self) -> bool {
        true
    }
}

impl VeraConfig {
    /// How the vectors of a site begin: `lambda_b` of length `rows`, and `lambda_d`.
    fn fresh(&self, rows: usize, params: &mut ParamBuilder<'_>) -> (Vec<f32>, Vec<f32>) {
        if self.init_weights {
            (vec![0.0; rows], vec![self.d_initial as f32; self.r])
        } else {
            (vec![1.0; rows], params.rng().normal(0.0, 1.0, self.r))
        }
    }
}

/// A trained vector; one that is made fresh is rounded like a 16-bit base, as PEFT does.
fn vector(site: &Site, name: &str, fresh: Vec<f32>, params: &mut ParamBuilder<'_>) -> Result<Param> {
    let HostSpec { dtype, ref device, .. } = site.spec;
    let (key, length) = (ParamKey::site(&site.path, name), fresh.len());
    params.trainable(key, length, adapter_dtype(dtype), device, || {
        Ok(Tensor::from_vec(fresh, length, &Device::Cpu)?.to_dtype(value_dtype(dtype))?)
    })
}
