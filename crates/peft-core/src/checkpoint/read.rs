//! Reading adapter folders.

use super::pickle::PickleFile;
use super::{COMPACT_FILE, CONFIG_FILE, PICKLE_FILE, SafetensorsFile, WEIGHTS_FILE, bounded};
use crate::{AdapterConfig, Error, Registry, Result, TensorSource};
use candle_core::{Device, Shape, Tensor};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

/// The longest config that is read. PEFT's have a kilobyte, and those that list thousands of modules some hundreds.
const LONGEST_CONFIG: u64 = 10_000_000;

/// The tensors of an adapter folder, whatever kind of file they are in, under the names that the file has.
pub struct AdapterFile(Kind);

enum Kind {
    Safetensors(SafetensorsFile),
    Pickle(PickleFile),
}

impl AdapterFile {
    /// Opens the file of tensors of an adapter folder: `adapter_model.safetensors`, or `adapter_model.bin` where there is none.
    ///
    /// # Errors
    /// When there is neither, or the file is broken.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (weights, pickle) = (dir.join(WEIGHTS_FILE), dir.join(PICKLE_FILE));
        // A link that leads nowhere is there, and should be complained about.
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        match (is_there(&weights), is_there(&pickle)) {
            (true, _) => Ok(Self(Kind::Safetensors(SafetensorsFile::open(weights)?))),
            (false, true) => Ok(Self(Kind::Pickle(PickleFile::open(pickle)?))),
            (false, false) => Err(Error::model(dir, format!("it has neither {WEIGHTS_FILE} nor {PICKLE_FILE}"))),
        }
    }

    /// Where the file was read from.
    pub fn path(&self) -> &Path {
        match &self.0 {
            Kind::Safetensors(file) => file.path(),
            Kind::Pickle(file) => file.path(),
        }
    }

    fn source(&self) -> &dyn TensorSource {
        match &self.0 {
            Kind::Safetensors(file) => file,
            Kind::Pickle(file) => file,
        }
    }
}

impl TensorSource for AdapterFile {
    fn names(&self) -> BTreeSet<String> {
        self.source().names()
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        self.source().shape(name)
    }

    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        self.source().load(name, device)
    }
}

/// The text of an `adapter_config.json`.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, is no file or longer than any config.
pub fn read_config_text(path: impl AsRef<Path>) -> Result<String> {
    bounded::read_text(path.as_ref(), LONGEST_CONFIG)
}

/// Reads config and tensors of an adapter folder.
///
/// # Errors
/// When a file is missing or broken, or the config names a method that is not registered.
pub fn read_adapter(dir: &Path, registry: &Registry) -> Result<(AdapterConfig, AdapterFile)> {
    let config_path = dir.join(CONFIG_FILE);
    let text = read_config_text(&config_path).map_err(|error| match &error {
        Error::Io { error: io, .. } if io.kind() == ErrorKind::NotFound && !dir.exists() => {
            Error::model(dir, "no such folder")
        }
        Error::Io { error: io, .. } if io.kind() == ErrorKind::NotFound => {
            Error::model(dir, format!("not an adapter folder: it has no {CONFIG_FILE}"))
        }
        _ => error,
    })?;
    let config = registry.parse(&text).map_err(|e| e.at(config_path.display().to_string()))?;
    if config.meta.compact.is_none() {
        return Ok((config, AdapterFile::open(dir)?));
    }
    let path = dir.join(COMPACT_FILE);
    if !path.exists() {
        let message = format!("its config is of a compact checkpoint, and it has no {COMPACT_FILE}");
        return Err(Error::model(dir, message));
    }
    Ok((config, AdapterFile(Kind::Safetensors(SafetensorsFile::open(path)?))))
}
