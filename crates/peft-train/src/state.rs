//! What a run needs to go on as if it had never stopped.

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::Path;

/// The layout of the file; another one is refused.
const VERSION: u32 = 1;
const METADATA_KEY: &str = "trainer_state";
const PARAMETER: &str = "parameter:";
const OPTIMIZER: &str = "optimizer:";

/// A snapshot of a [`Trainer`](crate::sft::Trainer): its step, parameters and optimizer.
///
/// Data order, dropout and learning rate are functions of the step, so there is no more to keep.
#[derive(Debug, Clone)]
pub struct TrainerState {
    /// Finished steps.
    pub step: u64,
    /// What the run was asked to do.
    pub fingerprint: Fingerprint,
    /// The trained parameters by name.
    pub parameters: BTreeMap<String, Tensor>,
    /// The optimizer's tensors by name.
    pub optimizer: BTreeMap<String, Tensor>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    step: u64,
    fingerprint: Fingerprint,
}

impl TrainerState {
    /// Writes the state to a file in one step: whenever the process is killed, the file is the old one or the new one.
    ///
    /// # Errors
    /// When the file cannot be written; an older one is whole then.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = Header { version: VERSION, step: self.step, fingerprint: self.fingerprint.clone() };
        let header = serde_json::to_string(&header).map_err(|error| Error::io("write", path, error.into()))?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), header)]);
        let parameters = self.parameters.iter().map(|(name, tensor)| (format!("{PARAMETER}{name}"), tensor));
        let optimizer = self.optimizer.iter().map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), tensor));
        let tensors = parameters.chain(optimizer).map(|(name, tensor)| Ok((name, tensor.contiguous()?)));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(candle_core::Error::from)?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Err(Error::io("write", path, ErrorKind::InvalidFilename.into()));
        };
        Ok(peft_core::checkpoint::write_folder(dir, &[(name, &bytes)])?)
    }

    /// Reads a state, or `None` when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a state of this version.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        Self::parse(&bytes).map(Some).map_err(|message| Error::Resume(format!("{}: {message}", path.display())))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let header = metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA_KEY));
        let header = header.ok_or_else(|| format!("its metadata has no `{METADATA_KEY}`"))?;
        let header: Header = serde_json::from_str(header).map_err(|error| error.to_string())?;
        if header.version != VERSION {
            return Err(format!("it has version {}, this release reads version {VERSION}", header.version));
        }
        let (mut parameters, mut optimizer) = (BTreeMap::new(), BTreeMap::new());
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        for (name, view) in file.tensors() {
            let tensor = view.load(&Device::Cpu).map_err(|error| format!("tensor `{name}`: {error}"))?;
            match (name.strip_prefix(PARAMETER), name.strip_prefix(OPTIMIZER)) {
                (Some(name), _) => parameters.insert(name.to_owned(), tensor),
                (_, Some(name)) => optimizer.insert(name.to_owned(), tensor),
                _ => return Err(format!("unexpected tensor `{name}`")),
            };
        }
        Ok(Self { step: header.step, fingerprint: header.fingerprint, parameters, optimizer })
    }
}
