//! Reading adapter folders.

use super::{COMPACT_FILE, CONFIG_FILE, WEIGHTS_FILE};
use crate::{AdapterConfig, Error, Registry, Result, TensorSource};
use candle_core::safetensors::BufferedSafetensors;
use candle_core::{Device, Shape, Tensor};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A safetensors file in memory, its header checked against its length.
pub struct SafetensorsFile {
    path: PathBuf,
    file: BufferedSafetensors,
}

impl SafetensorsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Safetensors`] when header and data do not agree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let file = BufferedSafetensors::new(bytes)
            .map_err(|e| Error::Safetensors { path: path.clone(), message: e.to_string() })?;
        Ok(Self { path, file })
    }

    /// Where the file was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl TensorSource for SafetensorsFile {
    fn names(&self) -> BTreeSet<String> {
        self.file.tensors().into_iter().map(|(name, _)| name).collect()
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        self.file.get(name).ok().map(|view| Shape::from(view.shape()))
    }

    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        if self.file.get(name).is_err() {
            return Ok(None);
        }
        let tensor = self.file.load(name, device);
        tensor
            .map(Some)
            .map_err(|e| Error::Safetensors { path: self.path.clone(), message: format!("tensor `{name}`: {e}") })
    }
}

/// Reads config and tensors of an adapter folder.
///
/// # Errors
/// When a file is missing or broken, or the config names a method that is not registered.
pub fn read_adapter(dir: &Path, registry: &Registry) -> Result<(AdapterConfig, SafetensorsFile)> {
    let config_path = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&config_path).map_err(|e| match e.kind() {
        ErrorKind::NotFound if !dir.exists() => Error::model(dir, "no such folder"),
        ErrorKind::NotFound => Error::model(dir, format!("not an adapter folder: it has no {CONFIG_FILE}")),
        _ => Error::io("read", &config_path, e),
    })?;
    let config = registry.parse(&text).map_err(|e| e.at(config_path.display().to_string()))?;
    if config.meta.compact.is_some() {
        let path = dir.join(COMPACT_FILE);
        return match path.exists() {
            true => Ok((config, SafetensorsFile::open(path)?)),
            false => {
                Err(Error::model(dir, format!("its config is of a compact checkpoint, and it has no {COMPACT_FILE}")))
            }
        };
    }
    let weights_path = dir.join(WEIGHTS_FILE);
    if !weights_path.exists() {
        let pickled = dir.join("adapter_model.bin").exists();
        let hint = if pickled { "; adapter_model.bin is a pickle: load it with PEFT and save it again" } else { "" };
        return Err(Error::model(dir, format!("it has no {WEIGHTS_FILE}{hint}")));
    }
    Ok((config, SafetensorsFile::open(weights_path)?))
}
