//! What a run was asked to do, as values that a resumed run compares.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Named facts about a run, such as its options and digests of its data.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, Value>);

impl Fingerprint {
    /// Adds a fact.
    pub(crate) fn record(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// Adds a digest, as text: JSON numbers do not hold 64 bits everywhere.
    pub(crate) fn record_digest(&mut self, name: impl Into<String>, digest: u64) {
        self.record(name, format!("{digest:016x}"));
    }

    /// Adds every field of an object under `prefix.`.
    pub(crate) fn record_fields(&mut self, prefix: &str, object: Value) {
        if let Value::Object(fields) = object {
            for (name, value) in fields {
                self.record(format!("{prefix}{name}"), value);
            }
        }
    }

    /// Refuses facts that differ from those of the run to be resumed.
    ///
    /// # Errors
    /// [`Error::Resume`] naming each fact with its former and its present value.
    pub(crate) fn check_same(&self, saved: &Self) -> Result<()> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(saved.0.keys()).collect();
        let describe = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
        let differences: Vec<String> = names
            .into_iter()
            .filter(|name| self.0.get(*name) != saved.0.get(*name))
            .map(|name| format!("{name} was {}, now {}", describe(saved.0.get(name)), describe(self.0.get(name))))
            .collect();
        if differences.is_empty() { Ok(()) } else { Err(Error::Resume(differences.join("; "))) }
    }
}

/// A 64-bit digest that is the same on every machine and in every release, unlike those of the standard library.
#[derive(Debug, Clone, Default)]
pub(crate) struct Digest(u64);

impl Digest {
    /// Takes in one number.
    pub(crate) fn word(&mut self, word: u64) {
        // The finaliser of SplitMix64: every bit of the input reaches every bit of the output.
        let mut z = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }

    /// Takes in a text.
    pub(crate) fn text(&mut self, text: &str) {
        self.word(text.len() as u64);
        text.bytes().for_each(|byte| self.word(u64::from(byte)));
    }

    /// Takes in shape, dtype and up to `samples` evenly spread elements.
    pub(crate) fn tensor(&mut self, tensor: &Tensor, samples: usize) -> Result<()> {
        self.text(tensor.dtype().as_str());
        tensor.dims().iter().for_each(|&dim| self.word(dim as u64));
        let count = tensor.elem_count();
        let stride = count.div_ceil(samples.max(1)).max(1);
        let flat = tensor.detach().flatten_all()?;
        let picked: Vec<u32> = (0..count).step_by(stride).filter_map(|index| u32::try_from(index).ok()).collect();
        let picked = Tensor::from_vec(picked.clone(), picked.len(), tensor.device())?;
        let values = flat.index_select(&picked, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        values.to_vec1::<f64>()?.into_iter().for_each(|value| self.word(value.to_bits()));
        Ok(())
    }

    /// The digest of all that was taken in.
    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}

/// A seed made from others and from a position; different inputs give unrelated seeds.
pub(crate) fn derived_seed(words: [u64; 3]) -> u64 {
    let mut digest = Digest::default();
    words.into_iter().for_each(|word| digest.word(word));
    digest.finish()
}
