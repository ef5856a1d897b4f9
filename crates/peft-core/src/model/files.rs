//! Adapters of a model from and to folders.

use super::PeftModel;
use crate::checkpoint::{DEFAULT_ADAPTER, DetachedAdapter, DetachedSite, WHOLE_MODULE_NAMES, read_adapter};
use crate::{Adaptable, Adapter, BaseWeight, Host, ParamKey, Registry, Result};
use candle_core::Tensor;
use std::path::Path;

impl<M: Adaptable> PeftModel<M> {
    /// Attaches the adapter saved in `dir` under a name. It becomes the only active one, in inference mode; call
    /// [`PeftModel::train`] to go on training it.
    ///
    /// # Errors
    /// When files are missing or broken, config and tensors contradict each other or the model, or adapters are merged. The model
    /// is untouched then.
    pub fn load_adapter(&mut self, name: &str, dir: impl AsRef<Path>, registry: &Registry) -> Result<&Adapter> {
        let dir = dir.as_ref();
        let (config, file) = read_adapter(dir, registry)?;
        self.add_from_source(name, config, &file).map_err(|e| e.at(dir.display().to_string()))
    }

    /// Writes every adapter as PEFT's `save_pretrained` does: `default` into `dir`, others into folders of their names below it.
    ///
    /// # Errors
    /// As [`PeftModel::save_adapter`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        self.adapters.iter().try_for_each(|adapter| {
            let name = &*adapter.name;
            self.save_adapter(name, if name == DEFAULT_ADAPTER { dir.to_owned() } else { dir.join(name) })
        })
    }

    /// One adapter as if it had been opened without the model, to convert it or to patch other models with it.
    ///
    /// What it says of modules, their order and their weights is the model's word. It shares the parameters: it changes as they are
    /// trained.
    ///
    /// # Errors
    /// When the name is unknown.
    pub fn detached(&self, name: &str) -> Result<DetachedAdapter> {
        let adapter = self.adapter(name)?;
        let mut sites = vec![];
        self.look(|path, host| {
            if let Some(layer) = host.slots().layer(name) {
                let (base, bias) = own_base(host, name);
                sites.push(DetachedSite { path: path.to_owned(), spec: host.spec(), base, bias, layer: layer.clone() });
            }
            Ok(())
        })?;
        let whole =
            |key: &ParamKey| matches!(key, ParamKey::Site { name, .. } if WHOLE_MODULE_NAMES.contains(&name.as_str()));
        let carried = adapter.params.persisted().filter(|(key, _)| whole(key));
        let carried = carried.map(|(key, tensor)| (key.to_string(), tensor.clone())).collect();
        Ok(DetachedAdapter { config: adapter.config.clone(), sites, params: adapter.params.clone(), carried })
    }
}

/// Weight and bias that one adapter alone finds at a host: what it brought along, or what was there before anything was merged.
fn own_base(host: &dyn Host, adapter: &str) -> (BaseWeight, Option<Tensor>) {
    let slots = host.slots();
    let (base, bias) = match slots.merged() {
        Some(merged) => (&merged.base, merged.bias.as_ref()),
        None => (host.base(), host.bias()),
    };
    let (weight, replaced_bias) = slots.replaced_by(adapter);
    (weight.map_or_else(|| base.clone(), |weight| base.with_stored(weight)), replaced_bias.or_else(|| bias.cloned()))
}
