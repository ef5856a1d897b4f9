//! IA3 as an adapter method: from a config and sites to layers.

use crate::config::Ia3Config;
use crate::defaults::Usual;
use crate::feedforward::{Feedforward, among_targets};
use crate::layer::Ia3Layer;
use candle_core::{DType, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, Error, HostKind, HostSpec, ModuleNames, ParamBuilder, ParamKey, Result, Site,
    SiteShapes, TargetSpec, adapter_dtype, value_dtype,
};
use std::sync::Arc;

/// The tensor of one module, below its path.
const L: &str = "ia3_l";

impl AdapterMethod for Ia3Config {
    const PEFT_TYPE: &'static str = "IA3";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn default_targets(&self, model_type: &str) -> Option<ModuleNames> {
        Usual::of(model_type).map(|usual| usual.targets())
    }

    /// The usual feed-forward modules, as far as they are adapted.
    fn fill_defaults(&mut self, model_type: Option<&str>, sites: &[Site]) -> Result<()> {
        if self.feedforward_modules.is_none() {
            let usual = model_type.and_then(Usual::of).ok_or_else(|| {
                let model = model_type.map_or("this model".to_owned(), |t| format!("model type `{t}`"));
                Error::config(format!(
                    "`feedforward_modules` must be set: {model} has no usual ones; a list may be empty"
                ))
            })?;
            let is_adapted = |name: &&&str| sites.iter().any(|site| site.path.ends_with(**name));
            self.feedforward_modules = Some(ModuleNames::list(usual.feedforward().iter().filter(is_adapted).copied()));
        }
        Ok(())
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    /// PEFT's IA3 takes no embeddings either.
    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    /// PEFT writes the orientation of the last linear layer, and reads lists of feed-forward modules that are part of the targets.
    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = Site::fan_in_fan_out(sites).unwrap_or(self.fan_in_fan_out);
        if let (Some(ModuleNames::List(names)), Some(ModuleNames::List(targets))) =
            (&mut self.feedforward_modules, &mut self.targets.target_modules)
            && !names.iter().all(|name| targets.contains(name))
        {
            *names = among_targets(names, targets, sites);
        }
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[L]
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let none = ModuleNames::List(vec![]);
        let names = self.feedforward_modules.as_ref().unwrap_or(&none);
        let feedforward = Feedforward::new(names)?;
        if !params.is_loading() {
            every_name_matches(names, sites)?;
        }
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for site in sites {
            layers.push(Arc::new(self.layer(site, feedforward.has(&site.path)?, params)?));
        }
        Ok(layers)
    }

    /// A vector tells one side of the weight.
    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        match tensors.get(L)?.dims2().ok()? {
            (1, cols) if cols > 1 => Some((0, cols)),
            (rows, _) => Some((rows, 0)),
        }
    }
}

impl Ia3Config {
    fn layer(&self, site: &Site, feedforward: bool, params: &mut ParamBuilder<'_>) -> Result<Ia3Layer> {
        let HostSpec { rows, cols, dtype, ref device, .. } = site.spec;
        let shape = if feedforward { (1, cols) } else { (rows, 1) };
        // PEFT draws the numbers whether or not it keeps them; here nobody draws after it, so that only kept ones are drawn.
        let drawn =
            (!self.init_ia3_weights && !params.is_loading()).then(|| params.rng().normal(0.0, 1.0, shape.0 * shape.1));
        let init = || match drawn {
            Some(values) => Ok(Tensor::from_vec(values, shape, device)?.to_dtype(value_dtype(dtype))?),
            None => Ok(Tensor::ones(shape, DType::F32, device)?),
        };
        let l = params.trainable(ParamKey::site(&site.path, L), shape, adapter_dtype(dtype), device, init)?;
        Ok(Ia3Layer::new(l, feedforward))
    }
}

/// A name, or an expression, that means no adapted module is a mistake.
fn every_name_matches(names: &ModuleNames, sites: &[Site]) -> Result<()> {
    let each = match names {
        ModuleNames::List(names) => names.iter().map(|name| ModuleNames::list([name])).collect(),
        pattern => vec![pattern.clone()],
    };
    for one in &each {
        let feedforward = Feedforward::new(one)?;
        if !sites.iter().try_fold(false, |any, site| Ok::<_, Error>(any || feedforward.has(&site.path)?))? {
            let adapted = sites.iter().map(|site| site.path.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::config(format!(
                "`feedforward_modules` has {one}, which means none of the adapted modules: {adapted}"
            )));
        }
    }
    Ok(())
}
