//! Adapters of a model from and to folders.

use super::PeftModel;
use crate::checkpoint::{DEFAULT_ADAPTER, read_adapter, write_adapter};
use crate::{Adaptable, Adapter, Registry, Result};
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

    /// Writes one adapter into `dir`, replacing what is there file by file, each in one step.
    ///
    /// # Errors
    /// When the name is unknown or a file cannot be written; older files are whole then.
    pub fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        let adapter = self.adapter(name)?;
        let mut config = adapter.config.clone();
        config.meta.inference_mode = true;
        write_adapter(dir.as_ref(), &config, adapter.params.persisted().map(|(key, tensor)| (key.to_string(), tensor)))
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
}
