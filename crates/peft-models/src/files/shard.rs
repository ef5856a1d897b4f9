//! One safetensors file of a model, whose tensors are read one at a time.
//!
//! Read and not mapped: what was read through a map stays in the process beside the copy that the model holds, so for a moment a model
//! would take twice its size.

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Shape, Tensor};
use half::{bf16, f16};
use peft_core::{Error, Result};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The bytes before the header, which are its length.
const LENGTH_BYTES: u64 = 8;

/// A file, or what would be in one.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    header: Metadata,
    data: Data,
}

enum Data {
    File {
        file: Mutex<File>,
        /// Where the tensors begin.
        start: u64,
    },
    Bytes {
        bytes: Vec<u8>,
        start: usize,
    },
}

impl Shard {
    /// Opens a file. Its header is checked against its length; no tensor is read.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let failed = |e| Error::io("read", &path, e);
        let mut file = File::open(&path).map_err(failed)?;
        check(&path)?;
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        let mut header = vec![];
        (&mut file).take(length).read_to_end(&mut header).map_err(failed)?;
        let header = serde_json::from_slice(&header).map_err(|e| invalid(&path, &e))?;
        Ok(Self { path, header, data: Data::File { file: Mutex::new(file), start: LENGTH_BYTES + length } })
    }

    /// The bytes of a file; `origin` is what errors call it.
    pub(super) fn from_bytes(bytes: Vec<u8>, origin: &Path) -> Result<Self> {
        let (length, header) = SafeTensors::read_metadata(&bytes).map_err(|e| invalid(origin, &e))?;
        let start = LENGTH_BYTES as usize + length;
        Ok(Self { path: origin.to_owned(), header, data: Data::Bytes { bytes, start } })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.header.tensors().into_keys().collect()
    }

    /// Dtype and shape of a tensor.
    pub(super) fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    /// Reads a tensor of floats, in the dtype that it is stored in.
    pub(super) fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.info(name)?;
        let shape = Shape::from(info.shape.as_slice());
        let count = shape.elem_count();
        let tensor = match info.dtype {
            Dtype::F32 => Tensor::from_vec(self.read::<f32>(info, count)?, shape, device),
            Dtype::F64 => Tensor::from_vec(self.read::<f64>(info, count)?, shape, device),
            Dtype::BF16 => {
                let bits = self.read::<u16>(info, count)?;
                Tensor::from_vec(bits.into_iter().map(bf16::from_bits).collect::<Vec<_>>(), shape, device)
            }
            Dtype::F16 => {
                let bits = self.read::<u16>(info, count)?;
                Tensor::from_vec(bits.into_iter().map(f16::from_bits).collect::<Vec<_>>(), shape, device)
            }
            other => {
                let message = format!(
                    "`{name}` is stored as {other:?}; supported: F32, F16, BF16, F64 (quantized weights are not)"
                );
                return Err(Error::model(&self.path, message));
            }
        };
        Ok(tensor?)
    }

    /// Reads the elements of a tensor, straight to where they stay.
    fn read<T: bytemuck::Pod>(&self, info: &TensorInfo, count: usize) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); count];
        let out: &mut [u8] = bytemuck::cast_slice_mut(&mut elements);
        let (from, to) = info.data_offsets;
        match &self.data {
            Data::Bytes { bytes, start } => {
                let stored = bytes.get(start + from..start + to).filter(|stored| stored.len() == out.len());
                let stored = stored.ok_or_else(|| Error::model(&self.path, "a tensor lies outside the file"))?;
                out.copy_from_slice(stored);
            }
            Data::File { file, start } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let place = SeekFrom::Start(start + from as u64);
                file.seek(place).and_then(|_| file.read_exact(out)).map_err(|e| Error::io("read", &self.path, e))?;
            }
        }
        Ok(elements)
    }
}

/// Holds the header against the file's length and its tensors against each other, without reading them.
fn check(path: &Path) -> Result<()> {
    // SAFETY: the map is read-only and gone before this function returns; of it only the header is looked at. Writers in this workspace
    // replace files by renaming, which leaves a mapped file whole.
    let mapped = unsafe { MmapedSafetensors::new(path) };
    mapped.map(drop).map_err(|e| invalid(path, &e))
}

fn invalid(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Safetensors { path: path.to_owned(), message: error.to_string() }
}
