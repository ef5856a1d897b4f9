//! Reading safetensors files.

use super::bounded;
use crate::error::quoted;
use crate::{Error, Result, TensorSource};
use candle_core::safetensors::BufferedSafetensors;
use candle_core::{Device, Shape, Tensor};
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The bytes before the header, which are its length.
const LENGTH_BYTES: u64 = 8;

/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file in memory, its header checked against its length.
pub struct SafetensorsFile {
    path: PathBuf,
    file: BufferedSafetensors,
}

impl SafetensorsFile {
    /// Reads a file: the header first, and the rest when the header agrees with the file's length.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Safetensors`] when header and data do not agree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let invalid = |message: String| Error::Safetensors { path: path.clone(), message };
        let (mut file, length) = bounded::open(&path)?;
        let mut start = vec![];
        (&mut file).take(LENGTH_BYTES).read_to_end(&mut start).map_err(|e| Error::io("read", &path, e))?;
        let declared: [u8; LENGTH_BYTES as usize] =
            start.as_slice().try_into().map_err(|_| invalid(format!("it is {} bytes long", start.len())))?;
        let header = u64::from_le_bytes(declared);
        let room = length.saturating_sub(LENGTH_BYTES);
        if header > LONGEST_HEADER || header > room {
            let limit = room.min(LONGEST_HEADER);
            return Err(invalid(format!("its header is said to be {header} bytes long; there can be {limit}")));
        }
        let bytes = bounded::read_rest(&path, &mut file, start, LENGTH_BYTES + header)?;
        let tensors = check_header(&bytes[LENGTH_BYTES as usize..]).map_err(invalid)?;
        let data = room - header;
        if tensors != data {
            return Err(invalid(format!("its header describes {tensors} bytes of tensors, but there are {data}")));
        }
        let bytes = bounded::read_rest(&path, &mut file, bytes, length)?;
        let file = BufferedSafetensors::new(bytes).map_err(|e| invalid(e.to_string()))?;
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

/// Parses a header; how many bytes of tensors it describes.
fn check_header(header: &[u8]) -> Result<u64, String> {
    serde_json::from_slice::<UniqueNames>(header).map_err(|e| e.to_string())?;
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    let tensors = metadata.tensors();
    // Readers of the format go by the largest offset; whether the tensors fill the space before it is checked with the data.
    let ends = tensors.values().map(|info| info.data_offsets.1);
    Ok(ends.max().unwrap_or(0) as u64)
}

/// The names of a header, each of which may occur once: readers disagree about which of two counts.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a header with tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueNames, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                    if let Some(twice) = seen.replace(name) {
                        return Err(serde::de::Error::custom(format!(
                            "the tensor {} is described twice",
                            quoted(&twice)
                        )));
                    }
                }
                Ok(UniqueNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}
