//! The cases under `tests/fixtures`: adapters that PEFT wrote, and what it computed with them.

use candle_core::{Device, Tensor};
use peft_core::checkpoint::SafetensorsFile;
use peft_core::{Error, Result, TensorSource};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder with all cases.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// One case: an adapter folder with the base model it belongs to and what PEFT computed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FixtureCase {
    /// The adapter folder.
    pub adapter: PathBuf,
    /// The folder of the base model.
    pub base: PathBuf,
    /// The adapted modules in visit order; empty where the case does not list them.
    pub modules: Vec<String>,
    /// The loss that PEFT computed.
    pub loss: Option<f64>,
    /// The tensors of `expected.safetensors`: `input_ids`, `adapted_logits`, `delta.<module>`, `grad.<key>`, …
    pub expected: BTreeMap<String, Tensor>,
}

/// Opens a case by its folder's name; `tinylora_two_adapters/other` is the second adapter of that case.
///
/// # Errors
/// When there is no such case or a file of it is broken.
pub fn case(name: &str) -> Result<FixtureCase> {
    let adapter = root().join(name);
    let top = root().join(name.split('/').next().unwrap_or(name));
    let path = top.join("case.json");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let about: Value = serde_json::from_str(&text)?;
    let base = about["base"].as_str().ok_or_else(|| Error::model(&path, "it names no base model"))?;
    let base = root().join(base);
    // `case.json` describes the adapter beside it, not those in folders below.
    let about = if adapter == top { &about } else { &Value::Null };
    let modules = about["modules"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let expected = adapter.join("expected.safetensors");
    Ok(FixtureCase {
        base,
        modules: modules.collect(),
        loss: about["loss"].as_f64(),
        expected: tensors(if expected.exists() { expected } else { top.join("expected.safetensors") })?,
        adapter,
    })
}

/// Every tensor of a safetensors file, by name.
///
/// # Errors
/// When the file cannot be read.
pub fn tensors(path: impl AsRef<Path>) -> Result<BTreeMap<String, Tensor>> {
    let file = SafetensorsFile::open(path)?;
    let mut all = BTreeMap::new();
    for name in file.names() {
        if let Some(tensor) = file.load(&name, &Device::Cpu)? {
            all.insert(name, tensor);
        }
    }
    Ok(all)
}

impl FixtureCase {
    /// One expected tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the case has none of this name.
    pub fn expected(&self, name: &str) -> Result<&Tensor> {
        self.expected.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    /// The expected tensors whose names begin with `prefix`, without it.
    pub fn expected_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.expected.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }
}
