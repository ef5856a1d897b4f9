//! The tensors of a model: one safetensors file or several.

use super::shard::Shard;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use peft_core::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Tensors by name, read when they are asked for. Remembers which were.
pub(super) struct Weights {
    shards: Vec<Shard>,
    /// The shard of each tensor.
    routing: BTreeMap<String, usize>,
    read: Mutex<BTreeSet<String>>,
}

/// What an index says: the shard of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the weights of a model folder. Headers are checked against the lengths of their files; no tensor is read yet.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE_FILE);
        if single.exists() {
            return Self::new(vec![Shard::open(single)?]);
        }
        let index_path = folder.join(INDEX_FILE);
        if !index_path.exists() {
            let pickled =
                ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
            let hint = if pickled {
                "; pytorch_model.bin is a pickle, of which only adapters are read: load the model with transformers and save it again, \
                 which writes safetensors"
            } else {
                ""
            };
            return Err(Error::model(folder, format!("it has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")));
        }
        let text = fs::read_to_string(&index_path).map_err(|e| Error::io("read", &index_path, e))?;
        let index: Index = serde_json::from_str(&text).map_err(|e| Error::model(&index_path, e.to_string()))?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let mut shards = vec![];
        for file in files {
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(Error::model(&index_path, format!("`{file}` is not the name of a file in this folder")));
            }
            shards.push(Shard::open(folder.join(file))?);
        }
        let weights = Self::new(shards)?;
        for (name, file) in &index.weight_map {
            let found = weights.routing.get(name).map(|shard| &weights.shards[*shard].path);
            if found != Some(&folder.join(file)) {
                return Err(Error::model(
                    &index_path,
                    format!("it places the tensor `{name}` in {file}, which does not hold it"),
                ));
            }
        }
        Ok(weights)
    }

    /// The weights in the bytes of one safetensors file.
    pub(super) fn from_bytes(bytes: Vec<u8>, origin: &Path) -> Result<Self> {
        Self::new(vec![Shard::from_bytes(bytes, origin)?])
    }

    fn new(shards: Vec<Shard>) -> Result<Self> {
        let mut routing = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                if let Some(other) = routing.insert(name.clone(), i) {
                    let message = format!("the tensor `{name}` is in {} too", shards[other].path.display());
                    return Err(Error::model(&shard.path, message));
                }
            }
        }
        Ok(Self { shards, routing, read: Mutex::default() })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.routing.keys().map(String::as_str)
    }

    /// The dtype that the tensors are stored in, if it is one models compute in; that of the first where they differ.
    pub(super) fn dtype(&self) -> Option<DType> {
        let dtypes =
            self.names().filter_map(|name| DType::try_from(self.shard(name).ok()?.info(name).ok()?.dtype).ok());
        dtypes.into_iter().find(DType::is_float)
    }

    /// The tensors that nothing has asked for.
    pub(super) fn unread(&self) -> Vec<String> {
        let read = self.read();
        self.names().filter(|name| !read.contains(*name)).map(str::to_owned).collect()
    }

    fn read(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, name: &str) -> Result<&Shard> {
        let shard = self.routing.get(name).map(|i| &self.shards[*i]);
        shard.ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    /// Reads a tensor. Its shape is compared with the header first, so a wrong one costs no memory.
    fn load(&self, name: &str, expected: Option<&Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shard = self.shard(name)?;
        let found = Shape::from(shard.info(name)?.shape.as_slice());
        if let Some(expected) = expected.filter(|expected| **expected != found) {
            return Err(Error::ShapeMismatch { key: name.to_owned(), expected: expected.clone(), found });
        }
        let tensor = shard.load(name, device)?.to_dtype(dtype)?;
        self.read().insert(name.to_owned());
        Ok(tensor)
    }
}

impl SimpleBackend for &Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Ok(self.load(name, Some(&shape), dtype, device)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Ok(self.load(name, None, dtype, device)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.routing.contains_key(name)
    }
}
