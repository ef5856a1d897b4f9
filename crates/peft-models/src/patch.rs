//! Adapters added to the weights of models that are loaded by other code.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use peft_core::checkpoint::{DetachedAdapter, DetachedSite};
use peft_core::{BaseWeight, Error, Mode, Result, WeightLayout};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What PEFT puts before the path of a module of the base model.
const PREFIX: &str = "base_model.model.";

/// What token embeddings are called.
const EMBEDDINGS: [&str; 4] = ["embed_tokens", "wte", "embed_in", "word_embeddings"];

/// What output heads are called.
const HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// Where a tied head finds its weight, beside the head.
const TIED: [&str; 6] = [
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
];

/// Base weights with the deltas of adapters added by name: any unmodified candle-transformers model that loads from them is adapted.
///
/// The result is what merging gives: deltas are added in the order of the adapters, 16-bit weights are summed in f32 and rounded
/// once for each, whole modules that came with an adapter (`modules_to_save`, trained biases) take the place of the base's. It is
/// made for inference; a patched weight is no variable.
///
/// Where a model asks for a head that the files do not hold, because they tie it to the embedding, it gets the embedding's base
/// weight. So a model that ties them can be loaded untied (`tie_word_embeddings: false`), and must be when an adapter changes
/// either of the two.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
/// use peft_core::{Registry, checkpoint::DetachedAdapter};
/// use peft_models::{ModelFiles, PatchedWeights};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let registry = Registry::new();
/// let files = ModelFiles::open("path/to/Qwen2.5-0.5B")?;
/// let config: Config = serde_json::from_value(files.config().clone().into())?;
/// let adapter = DetachedAdapter::open("path/to/adapter", &registry)?;
/// let base = files.var_builder(DType::F32, &Device::Cpu);
/// let model = PatchedWeights::new(base, [adapter])?.load(|vb| ModelForCausalLM::new(&config, vb))?;
/// # drop(model);
/// # Ok(()) }
/// ```
#[must_use = "weights are patched while `load` builds a model"]
pub struct PatchedWeights<'a> {
    base: VarBuilder<'a>,
    /// By the name of the tensor they change.
    patches: BTreeMap<String, Patch>,
    log: Mutex<Log>,
}

/// What adapters make of one tensor.
#[derive(Debug, Default)]
struct Patch {
    /// A tensor in place of the base's, and the number of the adapter that brought it.
    replacement: Option<(Tensor, usize)>,
    sites: Vec<DetachedSite>,
}

/// What happened while a model was built.
#[derive(Debug, Default)]
struct Log {
    requested: BTreeSet<String>,
    failure: Option<Error>,
}

impl<'a> PatchedWeights<'a> {
    /// Base weights and the adapters to add to them. `base` stands at the root of the names.
    ///
    /// # Errors
    /// When two adapters both replace the same tensor; they are called `#1`, `#2`, … by their order.
    pub fn new(base: VarBuilder<'a>, adapters: impl IntoIterator<Item = DetachedAdapter>) -> Result<Self> {
        let mut patches: BTreeMap<String, Patch> = BTreeMap::new();
        for (number, adapter) in (1..).zip(adapters) {
            for (key, tensor) in adapter.carried {
                let name = key.strip_prefix(PREFIX).unwrap_or(&key).replace(".base_layer.", ".");
                let (path, what) = if let Some(path) = name.strip_suffix(".bias") {
                    (path, "bias")
                } else {
                    (module_of(&name), "weight")
                };
                let path = path.to_owned();
                let replacement = &mut patches.entry(name).or_default().replacement;
                if let Some((_, other)) = replacement {
                    let (first, second) = (format!("#{other}"), format!("#{number}"));
                    return Err(Error::ConflictingReplacement { first, second, what, path });
                }
                *replacement = Some((tensor, number));
            }
            for site in adapter.sites {
                if site.layer.delta_bias(None, Mode::Infer)?.is_some() {
                    // Changed whatever it is, so the model must have one and ask for it.
                    patches.entry(format!("{}.bias", site.path)).or_default();
                }
                patches.entry(format!("{}.weight", site.path)).or_default().sites.push(site);
            }
        }
        Ok(Self { base, patches, log: Mutex::default() })
    }

    /// Builds a model from the patched weights and makes sure that every part of every adapter went into it.
    ///
    /// # Errors
    /// When `build` fails, a tensor is missing or an adapter does not fit it, the model never asks for a tensor that an adapter
    /// changes, or it ties its head to an embedding that an adapter changes.
    pub fn load<M>(self, build: impl FnOnce(VarBuilder<'_>) -> candle_core::Result<M>) -> Result<M> {
        let (dtype, device) = (self.base.dtype(), self.base.device().clone());
        let model = build(VarBuilder::from_backend(Box::new(&self), dtype, device));
        if let Some(failure) = self.log().failure.take() {
            return Err(failure);
        }
        let model = model?;
        self.check_requests()?;
        Ok(model)
    }

    fn check_requests(&self) -> Result<()> {
        let log = self.log();
        let requested = &log.requested;
        let missed: Vec<String> =
            self.patches.keys().filter(|name| !requested.contains(*name)).map(|name| format!("`{name}`")).collect();
        let tied = "the model ties its head to its embedding; build it with `tie_word_embeddings` set to false";
        if !missed.is_empty() {
            let hint = match self.patches.keys().any(|name| is_named(name, &HEADS) && !requested.contains(name)) {
                true => format!(": {tied}"),
                false => String::new(),
            };
            return Err(failed(format!(
                "the model never asked for {}, which an adapter changes{hint}",
                missed.join(", ")
            )));
        }
        let embedding = self.patches.keys().find(|name| is_named(name, &EMBEDDINGS));
        match embedding {
            Some(embedding) if !requested.iter().any(|name| is_named(name, &HEADS)) => {
                Err(failed(format!("an adapter changes `{embedding}`, and with it the head: {tied}")))
            }
            _ => Ok(()),
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sites whose deltas belong to a weight.
    fn sites(&self, weight: &str) -> &[DetachedSite] {
        self.patches.get(weight).map(|patch| patch.sites.as_slice()).unwrap_or_default()
    }

    /// The name that the base holds a tensor under: that of the embedding for a head that is tied to it.
    fn source(&self, name: &str) -> String {
        let tied = || {
            let head = HEADS.iter().find_map(|head| name.strip_suffix(&format!("{head}.weight")))?;
            TIED.iter().map(|embedding| format!("{head}{embedding}")).find(|name| self.base.contains_tensor(name))
        };
        match self.base.contains_tensor(name) {
            true => name.to_owned(),
            false => tied().unwrap_or_else(|| name.to_owned()),
        }
    }

    fn patched(&self, name: &str, base: impl FnOnce(&str) -> candle_core::Result<Tensor>) -> Result<Tensor> {
        self.log().requested.insert(name.to_owned());
        let base = base(&self.source(name))?;
        let mut tensor = base.clone();
        if let Some((replacement, _)) = self.patches.get(name).and_then(|patch| patch.replacement.as_ref()) {
            if replacement.shape() != base.shape() {
                let (found, expected) = (replacement.shape(), base.shape());
                return Err(failed(format!(
                    "the adapter holds `{name}` as {found:?}, the model has it as {expected:?}"
                )));
            }
            tensor = replacement.to_dtype(base.dtype())?;
        }
        let (sites, add): (_, fn(&DetachedSite, Tensor) -> Result<Tensor>) = match name.strip_suffix(".bias") {
            Some(path) => (self.sites(&format!("{path}.weight")), add_to_bias),
            None => (self.sites(name), add_to_weight),
        };
        // An adapter without its base model lives on the CPU.
        let start = if sites.is_empty() { tensor } else { tensor.to_device(&Device::Cpu)? };
        Ok(sites.iter().try_fold(start, |tensor, site| add(site, tensor))?.to_device(base.device())?)
    }
}

/// A bias with what one site adds to it.
fn add_to_bias(site: &DetachedSite, bias: Tensor) -> Result<Tensor> {
    let change = site.layer.delta_bias(Some(&bias), Mode::Infer).map_err(|e| e.at(&site.path))?;
    Ok(change.map_or(Ok(bias.clone()), |change| (bias.to_dtype(change.dtype())? + change)?.to_dtype(bias.dtype()))?)
}

/// A weight with the delta of one site added, in the layout it is stored in.
fn add_to_weight(site: &DetachedSite, weight: Tensor) -> Result<Tensor> {
    let (rows, cols, layout) = (site.spec.rows, site.spec.cols, site.spec.layout);
    let expected = if layout == WeightLayout::InOut { [cols, rows] } else { [rows, cols] };
    // A side that the adapter's tensors do not tell is 0.
    if weight.rank() != 2 || weight.dims().iter().zip(expected).any(|(found, side)| side != 0 && *found != side) {
        let (path, found) = (&site.path, weight.dims());
        return Err(failed(format!("the adapter fits a weight {expected:?} at `{path}`, the model's is {found:?}")));
    }
    let base = BaseWeight::Dense { weight, layout };
    let delta = site.layer.delta_weight(&base.canonical()?).map_err(|e| e.at(&site.path))?;
    Ok(base.plus(&delta)?.stored()?.clone())
}

fn failed(message: String) -> Error {
    Error::model("patched weights", message)
}

fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

/// Whether a tensor's module has one of these names.
fn is_named(tensor: &str, names: &[&str]) -> bool {
    module_of(tensor).rsplit('.').next().is_some_and(|leaf| names.contains(&leaf))
}

impl SimpleBackend for &PatchedWeights<'_> {
    /// A failure is kept for [`PatchedWeights::load`] and answered with zeros that take no memory: candle-transformers' Llama
    /// panics when one of its layers cannot be loaded.
    fn get(&self, shape: Shape, name: &str, hints: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let base = |name: &str| self.base.get_with_hints_dtype(shape.clone(), name, hints, dtype)?.to_device(device);
        self.patched(name, base).or_else(|failure| {
            self.log().failure.get_or_insert(failure);
            Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())
        })
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let base = |name: &str| self.base.get_unchecked_dtype(name, dtype)?.to_device(device);
        Ok(self.patched(name, base)?)
    }

    /// Models that ask tie their head when there is none: one that an adapter is about to part from its embedding is offered.
    fn contains_tensor(&self, name: &str) -> bool {
        let parted = || self.patches.keys().any(|patched| is_named(patched, &EMBEDDINGS) || is_named(patched, &HEADS));
        self.base.contains_tensor(name)
            || (is_named(name, &HEADS) && parted() && self.base.contains_tensor(&self.source(name)))
    }
}
