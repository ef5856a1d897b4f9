//! Checkpoints without what follows from the base model: the trained tensors, and which weights they belong to.
//!
//! This layout is this crate's own. The tensors have a file name that PEFT does not look for, so it finds no weights instead of loading
//! half an adapter; the config has a field that says how the rest is made.

use crate::{Error, Result, Site, TensorSource, WeightHash};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

/// How the files of an adapter are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// As PEFT does: with every tensor, in [`WEIGHTS_FILE`](super::WEIGHTS_FILE).
    #[default]
    Peft,
    /// Only what was trained and what tells the base model apart, in [`COMPACT_FILE`]. To load it, the same base model is needed.
    Compact,
}

/// The file with the tensors of a compact checkpoint.
pub const COMPACT_FILE: &str = "adapter_compact.safetensors";

/// The field of the config that marks a compact checkpoint.
const MARKER: &str = "candle_peft_compact";
/// Which way of making the left-out tensors this is.
const VERSION: u64 = 1;
/// The dtypes that a base model rounds factors to.
const VALUES: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::F64];

/// The tensor with the hash over the hashes of all adapted weights.
const ALL: &str = "base_hash.all";
/// The tensor with the first bytes of each weight's hash, in the order of the modules.
const EACH: &str = "base_hash.modules";
/// Enough to name a weight that differs; whether one does is told by the other tensor.
const SHORT: usize = 2;

/// The names of the tensors that tell the base model.
pub(crate) const BASE_TENSORS: [&str; 2] = [ALL, EACH];

/// What the config of a compact checkpoint says about the tensors that it leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compact {
    /// The dtype whose values they have: that of the base model the adapter was made on, which may be loaded in another now.
    pub values: DType,
}

impl Compact {
    pub(crate) fn new(values: DType) -> Self {
        Self { values }
    }

    /// Takes the marker out of a config's fields.
    pub(crate) fn take(fields: &mut Map<String, Value>) -> Result<Option<Self>> {
        let Some(marker) = fields.shift_remove(MARKER) else { return Ok(None) };
        match marker.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            version => {
                let version = version.map_or("no version".to_owned(), |v| format!("version {v}"));
                return Err(Error::config(format!("`{MARKER}` has {version}; this program reads version {VERSION}")));
            }
        }
        let name = marker.get("values").and_then(Value::as_str).unwrap_or_default();
        let values = VALUES.into_iter().find(|dtype| dtype.as_str() == name);
        let known = || VALUES.map(|dtype| dtype.as_str()).join(", ");
        let values =
            values.ok_or_else(|| Error::config(format!("`{MARKER}` has values `{name}`; they must be {}", known())))?;
        Ok(Some(Self { values }))
    }

    /// Puts the marker into a config's fields.
    pub(crate) fn put(self, fields: &mut Map<String, Value>) {
        fields.insert(MARKER.into(), json!({ "version": VERSION, "values": self.values.as_str() }));
    }
}

/// The weights that an adapter was made on, told apart by hashes.
#[derive(Debug)]
pub(crate) struct BaseRecord {
    all: [u8; 32],
    each: Vec<[u8; SHORT]>,
}

impl BaseRecord {
    /// That of these sites.
    pub(crate) fn of(sites: &[Site]) -> Result<Self> {
        let hash = |site: &Site| site.weight_hash().map_err(|e| e.at(&site.path));
        let hashes: Vec<WeightHash> = sites.par_iter().map(hash).collect::<Result<_>>()?;
        let mut all = blake3::Hasher::new();
        hashes.iter().for_each(|hash| {
            all.update(hash.as_bytes());
        });
        let each = hashes.iter().map(|hash| [hash.as_bytes()[0], hash.as_bytes()[1]]).collect();
        Ok(Self { all: all.finalize().into(), each })
    }

    /// As tensors of a checkpoint.
    pub(crate) fn tensors(&self) -> Result<[(String, Tensor); 2]> {
        let each = Tensor::from_slice(self.each.as_flattened(), (self.each.len(), SHORT), &Device::Cpu)?;
        Ok([(ALL.into(), Tensor::new(&self.all, &Device::Cpu)?), (EACH.into(), each)])
    }

    /// That of a checkpoint.
    pub(crate) fn read(source: &dyn TensorSource) -> Result<Self> {
        let bytes = |name: &str| -> Result<Vec<u8>> {
            let tensor = source.load(name, &Device::Cpu)?.ok_or_else(|| Error::MissingTensor(name.to_owned()))?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        let (all, each) = (bytes(ALL)?, bytes(EACH)?);
        let wrong = |key: &str, expected: usize, found: usize| Error::ShapeMismatch {
            key: key.to_owned(),
            expected: expected.into(),
            found: found.into(),
        };
        let all = <[u8; 32]>::try_from(all).map_err(|all| wrong(ALL, 32, all.len()))?;
        let (each, rest) = each.as_chunks();
        if rest.is_empty() {
            Ok(Self { all, each: each.to_vec() })
        } else {
            Err(wrong(EACH, SHORT * (each.len() + 1), SHORT * each.len() + rest.len()))
        }
    }

    /// Refuses sites whose weights are not those of this record; `base` is what the config calls the model it was made on.
    pub(crate) fn check(&self, sites: &[Site], base: Option<&str>) -> Result<()> {
        let found = Self::of(sites)?;
        if found.all == self.all {
            return Ok(());
        }
        let differs = found.each.iter().zip(&self.each).position(|(found, own)| found != own);
        Err(Error::OtherWeights {
            base: base.unwrap_or("a model that it does not name").to_owned(),
            module: differs.map(|index| sites[index].path.clone()),
            counts: (self.each.len(), sites.len()),
        })
    }
}
