//! The files of a model, as Hugging Face lays them out.

mod save;
mod shard;
mod weights;

pub use save::Companions;
pub(crate) use save::save;

use crate::fields::Fields;
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use peft_core::{Error, Result};
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use weights::Weights;

/// The file that describes a model.
const CONFIG_FILE: &str = "config.json";

/// What [`ModelFiles::load`] needs to know of one architecture.
pub(crate) trait Architecture: Sized {
    /// The `model_type` of its configs.
    const MODEL_TYPE: &'static str;
    /// The name of its list of blocks.
    const BLOCKS: &'static str;

    type Config;

    fn configure(fields: &Fields) -> Result<Self::Config>;

    fn block_count(config: &Self::Config) -> usize;

    fn build(config: Self::Config, vb: VarBuilder<'_>) -> Result<Self>;

    /// Whether checkpoints hold a tensor of this name that the model has no use for.
    fn is_redundant(config: &Self::Config, name: &str) -> bool;
}

/// The open files of a model: its config, and its weights, which are read tensor by tensor.
///
/// Besides this crate's models, any model of candle-transformers can be loaded from [`ModelFiles::var_builder`].
pub struct ModelFiles {
    place: PathBuf,
    fields: Fields,
    weights: Weights,
}

impl ModelFiles {
    /// Opens a folder with `config.json` and `model.safetensors`, or shards listed by `model.safetensors.index.json`.
    ///
    /// The files must not be truncated or rewritten in place while they are open.
    ///
    /// # Errors
    /// When the folder or a file is missing, a header contradicts its file, or the index contradicts the shards.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = folder.join(CONFIG_FILE);
        let text = fs::read_to_string(&config).map_err(|e| match e.kind() {
            ErrorKind::NotFound if !folder.exists() => Error::model(folder, "no such folder"),
            ErrorKind::NotFound => Error::model(folder, format!("not a model folder: it has no {CONFIG_FILE}")),
            _ => Error::io("read", &config, e),
        })?;
        let fields = Fields::parse(&text, config)?;
        Ok(Self { place: folder.to_owned(), fields, weights: Weights::open(folder)? })
    }

    /// The same from memory: the text of a `config.json` and the bytes of a safetensors file.
    ///
    /// # Errors
    /// When either is broken.
    pub fn from_bytes(config: &str, weights: Vec<u8>) -> Result<Self> {
        let place = PathBuf::from("embedded model");
        let fields = Fields::parse(config, place.join(CONFIG_FILE))?;
        let weights = Weights::from_bytes(weights, &place)?;
        Ok(Self { place, fields, weights })
    }

    /// All fields of the config.
    pub fn config(&self) -> &Map<String, Value> {
        self.fields.all()
    }

    /// The `model_type` of the config.
    ///
    /// # Errors
    /// When there is none.
    pub fn model_type(&self) -> Result<&str> {
        let model_type = self.fields.all().get("model_type").and_then(Value::as_str);
        model_type.ok_or_else(|| self.fields.error("`model_type` is missing"))
    }

    /// The dtype that the config names (`dtype`, `torch_dtype`), or else that of the stored weights.
    ///
    /// # Errors
    /// When that is not f32, f16, bf16 or f64.
    pub fn dtype(&self) -> Result<DType> {
        for key in ["dtype", "torch_dtype"] {
            let Some(name) = self.fields.optional::<String>(key)? else { continue };
            return match name.trim_start_matches("torch.") {
                "float32" => Ok(DType::F32),
                "float16" => Ok(DType::F16),
                "bfloat16" => Ok(DType::BF16),
                "float64" => Ok(DType::F64),
                _ => Err(self
                    .fields
                    .error(format!("`{key}` is `{name}`; supported: float32, float16, bfloat16, float64"))),
            };
        }
        self.weights.dtype().ok_or_else(|| Error::model(&self.place, "the weights have no float tensor"))
    }

    /// Reads the weights for whoever builds a model from them, as `dtype` on `device`.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'_> {
        VarBuilder::from_backend(Box::new(&self.weights), dtype, device.clone())
    }

    /// Builds a model and makes sure that config and weights agree to the last tensor.
    pub(crate) fn load<A: Architecture>(&self, dtype: impl Into<Option<DType>>, device: &Device) -> Result<A> {
        let model_type = self.model_type()?;
        if model_type != A::MODEL_TYPE {
            return Err(self.unsupported(model_type, &[A::MODEL_TYPE]));
        }
        if self.fields.all().get("quantization_config").is_some_and(|q| !q.is_null()) {
            return Err(self.fields.error("`quantization_config` is set; quantized weights are not supported"));
        }
        let dtype = match dtype.into() {
            Some(dtype @ (DType::F32 | DType::F16 | DType::BF16 | DType::F64)) => dtype,
            Some(other) => {
                let message = format!("cannot compute in {}; supported: f32, f16, bf16, f64", other.as_str());
                return Err(Error::model(&self.place, message));
            }
            None => self.dtype()?,
        };
        let config = A::configure(&self.fields)?;
        let (blocks, found) = (A::block_count(&config), self.count_blocks(A::BLOCKS));
        if found != 0 && found != blocks {
            return Err(self.fields.error(format!("the config has {blocks} layers but the weights have {found}")));
        }
        let redundant = |name: &String| A::is_redundant(&config, name);
        let redundant: Vec<String> = self.weights.names().map(str::to_owned).filter(redundant).collect();
        let place = |e: Error| e.at(self.place.display().to_string());
        let model = A::build(config, self.var_builder(dtype, device)).map_err(place)?;
        let unread: Vec<String> = self.weights.unread().into_iter().filter(|name| !redundant.contains(name)).collect();
        if unread.is_empty() { Ok(model) } else { Err(place(Error::UnexpectedTensors(unread))) }
    }

    pub(crate) fn unsupported(&self, model_type: &str, supported: &[&str]) -> Error {
        self.fields.error(format!("`model_type` is `{model_type}`; supported: {}", supported.join(", ")))
    }

    /// One more than the highest index that follows `.{list}.` in a tensor's name.
    fn count_blocks(&self, list: &str) -> usize {
        let index = |name: &str| {
            let mut parts = name.split('.').skip_while(|part| *part != list);
            parts.nth(1)?.parse::<usize>().ok()?.checked_add(1)
        };
        self.weights.names().filter_map(index).max().unwrap_or(0)
    }
}
