//! An adapter looked at without its base model.

use super::{Keys, order, read_adapter};
use crate::error::preview;
use crate::params::SITE_PREFIX;
use crate::{
    AdapterConfig, AdapterLayer, BaseWeight, Error, HostKind, HostRole, HostSpec, Matcher, ParamBuilder, ParamKey,
    ParamStore, Persist, Registry, Result, Site, SiteShapes, TensorSource, WeightLayout,
};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What embeddings are called; their tensors look like those of a linear layer.
const EMBEDDINGS: [&str; 9] = [
    "embed_tokens",
    "embed_in",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "shared",
    "embedding",
];

/// How many parts the name of a tensor may have below its module's path.
const LONGEST_OWN_NAME: usize = 8;

/// What tensors of whole modules are called below a module's path; the longer names first, since the others end them.
pub(crate) const WHOLE_MODULE_NAMES: [&str; 4] = ["base_layer.weight", "base_layer.bias", "weight", "bias"];

/// One adapted module of a [`DetachedAdapter`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DetachedSite {
    /// The module's path in the base model.
    pub path: String,
    /// What the module must be, as far as names and shapes tell.
    pub spec: HostSpec,
    /// The weight that the layer's delta is added to; absent when the adapter was opened without its base model.
    pub base: BaseWeight,
    /// The bias beside that weight; `None` also when the adapter was opened without its base model.
    pub bias: Option<Tensor>,
    /// The adapter's layer.
    pub layer: Arc<dyn AdapterLayer>,
}

/// An adapter opened from its folder alone, for inspection, conversion, and patching of models that are loaded by other code.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DetachedAdapter {
    /// The config.
    pub config: AdapterConfig,
    /// The adapted modules, in visit order.
    pub sites: Vec<DetachedSite>,
    /// The adapter's own parameters.
    pub params: ParamStore,
    /// Tensors of whole modules that came with the adapter, by checkpoint name: `modules_to_save`, biases, base embeddings.
    pub carried: BTreeMap<String, Tensor>,
}

impl DetachedAdapter {
    /// Opens an adapter folder.
    ///
    /// # Errors
    /// When a file is missing or broken, the method cannot be opened without its base, tensors are missing, misshapen or left
    /// over, or the order of the modules matters and cannot be told from their names.
    pub fn open(dir: impl AsRef<Path>, registry: &Registry) -> Result<Self> {
        let (config, file) = read_adapter(dir.as_ref(), registry)?;
        Self::from_source(config, &file).map_err(|e| e.at(file.path().display().to_string()))
    }

    /// As [`DetachedAdapter::open`], from a config and tensors at hand.
    pub fn from_source(config: AdapterConfig, source: &dyn TensorSource) -> Result<Self> {
        config.method.check_origin(&config.meta)?;
        if config.meta.compact.is_some() {
            return Err(Error::CompactNeedsBase { base: config.meta.base_model_name_or_path.clone() });
        }
        if config.method.needs_base() {
            return Err(Error::NeedsBase { method: config.method.peft_type() });
        }
        let keys = Keys::new(source, &config.method)?;
        Self::from_keys(config, &keys).map_err(|error| keys.in_words_of_the_file(error))
    }

    fn from_keys(config: AdapterConfig, source: &Keys<'_>) -> Result<Self> {
        let mut by_module: BTreeMap<String, SiteShapes> = BTreeMap::new();
        let matcher = Matcher::new(config.method.targets())?;
        let mut carried_keys = vec![];
        for name in source.names() {
            let Some(rest) = name.strip_prefix(SITE_PREFIX) else { continue };
            if let Some(key) = whole_module_key(rest, &matcher, &config) {
                carried_keys.push(key);
                continue;
            }
            // A tensor's own name may hold dots (`lora_A.weight`), so several cuts are offered to the method; not all, for a name may
            // be nothing but dots.
            for (cut, _) in rest.rmatch_indices('.').take(LONGEST_OWN_NAME) {
                let shape = source.shape(&name).ok_or_else(|| Error::MissingTensor(name.clone()))?;
                by_module.entry(rest[..cut].to_owned()).or_default().insert(rest[cut + 1..].to_owned(), shape);
            }
        }
        let mut shapes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (path, tensors) in by_module {
            if let Some(shape) = config.method.host_shape(&tensors) {
                shapes.insert(path, shape);
            }
        }
        if shapes.is_empty() {
            let method = config.method.peft_type();
            let names: Vec<String> = source.names().into_iter().collect();
            let names = if names.is_empty() { "none".to_owned() } else { preview(&names) };
            return Err(Error::config(format!(
                "the file has no tensors that a {method} adapter adapts a module with; it has {names}"
            )));
        }
        let mut paths: Vec<String> = shapes.keys().cloned().collect();
        let ordered = order::sort(&mut paths);
        if !ordered && config.method.order_matters() {
            return Err(Error::config(
                "the order of these modules cannot be told from their names, and the adapter depends on it; give the base model too",
            ));
        }
        let transposed = config.method.to_json()?.get("fan_in_fan_out").is_some_and(|f| f == true);
        let sites: Vec<Site> = paths
            .into_iter()
            .map(|path| {
                let (rows, cols) = shapes[&path];
                let spec = guess_spec(&path, rows, cols, transposed);
                Site::new(path, spec, BaseWeight::Absent)
            })
            .collect();
        let mut params = ParamBuilder::new(Some(source));
        let layers = config.method.build_all(&sites, &mut params)?;
        let mut carried = BTreeMap::new();
        for key in carried_keys {
            let name = key.to_string();
            let tensor = source.load(&name, &Device::Cpu)?.ok_or_else(|| Error::MissingTensor(name.clone()))?;
            let (shape, dtype) = (tensor.shape().clone(), tensor.dtype());
            params.frozen(key, shape, dtype, &Device::Cpu, Persist::Always, || Ok(tensor.clone()))?;
            carried.insert(name, tensor);
        }
        let params = params.finish()?;
        let sites = sites.into_iter().zip(layers);
        let detach = |(Site { path, spec, base, .. }, layer)| DetachedSite { path, spec, base, bias: None, layer };
        let sites = sites.map(detach).collect();
        Ok(Self { config, sites, params, carried })
    }
}

impl DetachedAdapter {
    /// How many numbers training changed: the adapter's own and those of whole modules that came along.
    pub fn trainable_count(&self) -> usize {
        let carried = self.carried.iter().filter(|(name, _)| !name.ends_with("base_layer.weight"));
        self.params.trainable_count() + carried.map(|(_, tensor)| tensor.elem_count()).sum::<usize>()
    }
}

/// The key of a tensor that is a whole weight or bias of the base model, not part of an adapter layer.
fn whole_module_key(rest: &str, matcher: &Matcher, config: &AdapterConfig) -> Option<ParamKey> {
    for name in WHOLE_MODULE_NAMES {
        let Some(path) = rest.strip_suffix(name).and_then(|p| p.strip_suffix('.')) else { continue };
        let is_bias = name.ends_with("bias") && config.method.bias() != crate::BiasMode::None;
        if name == "base_layer.weight" || is_bias || matcher.is_saved(path) {
            return Some(ParamKey::site(path, name));
        }
    }
    None
}

fn guess_spec(path: &str, rows: usize, cols: usize, transposed: bool) -> HostSpec {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    let embedding = EMBEDDINGS.contains(&leaf);
    let kind = if embedding { HostKind::Embedding } else { HostKind::Linear };
    let role = match leaf {
        "lm_head" | "embed_out" => HostRole::OutputHead,
        "embed_tokens" | "wte" | "embed_in" | "word_embeddings" => HostRole::InputEmbedding,
        _ => HostRole::Inner,
    };
    let layout = if transposed && !embedding { WeightLayout::InOut } else { WeightLayout::OutIn };
    HostSpec { role, layout, dtype: DType::F32, ..HostSpec::new(kind, rows, cols) }
}
