//! `adapter_model.bin`: what PEFT wrote before it wrote safetensors, a zip archive with a pickle that says where tensors are.
//!
//! A pickle is a program. Nothing in it is run: candle's reader turns it into plain values, of which the few that stand for tensors
//! are understood and all others refused. What the reader would take on trust (lengths, depths, copies) is checked before it is
//! called, and what the values say of the file is checked before a tensor is made.

mod archive;
mod unpickle;
mod view;

use super::bounded;
use crate::{Error, Result, TensorSource};
use archive::Archive;
use candle_core::{Device, Shape, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use view::View;

/// How every zip archive of PyTorch begins.
const ZIP: &[u8] = b"PK\x03\x04";

/// A file of tensors as `torch.save` writes it, in memory.
pub struct PickleFile {
    path: PathBuf,
    bytes: Vec<u8>,
    tensors: BTreeMap<String, View>,
}

impl PickleFile {
    /// Reads a file: a flat dictionary of tensors, saved by PyTorch 1.6 or later.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Pickle`] when it is anything else, is damaged or says of itself what cannot be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let invalid = |message: String| Error::Pickle { path: path.clone(), message };
        let (mut file, length) = bounded::open(&path)?;
        let mut start = vec![];
        (&mut file).take(ZIP.len() as u64).read_to_end(&mut start).map_err(|e| Error::io("read", &path, e))?;
        if start != ZIP {
            return Err(invalid("it is not a zip archive, as PyTorch writes them since 1.6".into()));
        }
        let bytes = bounded::read_rest(&path, &mut file, start, length)?;
        let tensors = Archive::open(&bytes).and_then(|archive| view::tensors(&archive)).map_err(invalid)?;
        Ok(Self { path, bytes, tensors })
    }

    /// Where the file was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl TensorSource for PickleFile {
    fn names(&self) -> BTreeSet<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        self.tensors.get(name).map(|view| Shape::from(view.shape()))
    }

    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        let Some(view) = self.tensors.get(name) else { return Ok(None) };
        Ok(Some(Tensor::from_raw_buffer(&view.gather(&self.bytes), view.dtype(), view.shape(), device)?))
    }
}
