//! The tensors of a checkpoint under the names that PEFT writes today, whatever names the file has.
//!
//! Every name that is understood here means one thing. Where two readings are possible loading fails: a guess would load numbers
//! into the wrong place.

use super::WHOLE_MODULE_NAMES;
use crate::error::{preview, quoted};
use crate::params::SITE_PREFIX;
use crate::target::{nearest, saves};
use crate::{BiasMode, BoxedMethod, Error, HostSpec, Result, TensorSource};
use candle_core::{DType, Device, Shape, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// What tensors of the adapter as a whole begin with, and those of modules too.
const PREFIX: &str = "base_model.";

/// PEFT's wrapper around a module that is trained as a whole, and what holds the untrained copy in it.
const TRAINED: &str = "modules_to_save";
const ORIGINAL: &str = "original_module";

/// What the part of a causal language model without the head is called in it: an adapter trained on that part lacks this name.
const BODIES: [&str; 2] = ["model", "transformer"];

/// A source seen through names.
pub(crate) struct Keys<'a> {
    source: &'a dyn TensorSource,
    /// The name in the file of each name.
    stored: BTreeMap<String, String>,
}

impl<'a> Keys<'a> {
    /// Works out what the names of a source mean to a method.
    ///
    /// # Errors
    /// When two names mean the same, or tensors of several adapters are mixed.
    pub(crate) fn new(source: &'a dyn TensorSource, method: &BoxedMethod) -> Result<Self> {
        let mut keys = Self { source, stored: BTreeMap::new() };
        let (mut adapters, mut originals) = (BTreeSet::new(), vec![]);
        for stored in source.names() {
            let Plain { name, adapter, is_original } = Plain::new(&stored, method.tensor_names());
            adapters.extend(adapter);
            if is_original {
                originals.push((name, stored));
            } else {
                keys.insert(name, stored)?;
            }
        }
        if adapters.len() > 1 {
            let names: Vec<String> = adapters.into_iter().collect();
            return Err(Error::AmbiguousTensors(format!("they belong to the adapters {}", preview(&names))));
        }
        for (name, stored) in originals {
            // The base model has its own copy; alone it would be a trained module that is missing.
            if !keys.stored.contains_key(&name) {
                keys.insert(stored.clone(), stored)?;
            }
        }
        keys.find_biases(method)?;
        Ok(keys)
    }

    /// Two names for one tensor are an error, unless both hold the same numbers: PEFT writes the trained biases of whole
    /// modules twice when `bias` is `all`.
    fn insert(&mut self, name: String, stored: String) -> Result<()> {
        let Some(other) = self.stored.get(&name) else {
            self.stored.insert(name, stored);
            return Ok(());
        };
        let trained = |key: &str| key.split('.').any(|part| part == TRAINED);
        if trained(other) != trained(&stored) && self.same(other, &stored)? {
            return Ok(());
        }
        let (other, stored, name) = (quoted(other), quoted(&stored), quoted(&name));
        Err(Error::AmbiguousTensors(format!("{other} and {stored} both mean {name}")))
    }

    fn same(&self, a: &str, b: &str) -> Result<bool> {
        if self.source.shape(a) != self.source.shape(b) {
            return Ok(false);
        }
        let (Some(a), Some(b)) = (self.source.load(a, &Device::Cpu)?, self.source.load(b, &Device::Cpu)?) else {
            return Ok(false);
        };
        Ok(a.dtype() == b.dtype() && a.ne(&b)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? == 0.0)
    }

    /// In PEFT before 0.7 an adapted layer was a layer itself, with a bias of its own; today it has a `base_layer` with one.
    fn find_biases(&mut self, method: &BoxedMethod) -> Result<()> {
        if method.bias() == BiasMode::None {
            return Ok(());
        }
        let whole = |path: &str| method.targets().modules_to_save.iter().flatten().any(|name| saves(name, path));
        let adapted = |path: &str| {
            method.tensor_names().iter().any(|name| self.stored.contains_key(&format!("{SITE_PREFIX}{path}.{name}")))
        };
        let old = self.stored.keys().filter_map(|name| name.strip_prefix(SITE_PREFIX)?.strip_suffix(".bias"));
        let old = old.filter(|path| !whole(path) && adapted(path));
        let old: Vec<String> = old.map(|path| format!("{SITE_PREFIX}{path}")).collect();
        for path in old {
            if let Some(stored) = self.stored.remove(&format!("{path}.bias")) {
                self.insert(format!("{path}.base_layer.bias"), stored)?;
            }
        }
        Ok(())
    }

    /// The names as a model with these hosts has them.
    ///
    /// An adapter of a model without its head (`LlamaModel`) has paths that lack the first name of those of the model with it, or
    /// the other way round. That is made up for when every tensor then is one of a module that exists, and none was before.
    ///
    /// # Errors
    /// [`Error::UnknownModules`] when there are tensors for modules that the model lacks.
    pub(crate) fn on(mut self, hosts: &[(String, HostSpec)], method: &BoxedMethod) -> Result<Self> {
        let paths: BTreeSet<&str> = hosts.iter().map(|(path, _)| path.as_str()).collect();
        let exists = |name: &str| name.match_indices('.').any(|(cut, _)| paths.contains(&name[..cut]));
        let site = |name: &'_ str| name.strip_prefix(SITE_PREFIX).map(str::to_owned);
        let names: Vec<String> = self.stored.keys().filter_map(|name| site(name)).collect();
        let unknown: Vec<&String> = names.iter().filter(|name| !exists(name)).collect();
        if unknown.is_empty() {
            return Ok(self);
        }
        if unknown.len() == names.len() {
            let mut moves =
                moves().filter(|change| names.iter().all(|name| change.of(name).is_some_and(|name| exists(&name))));
            if let (Some(change), None) = (moves.next(), moves.next())
                && change.keeps_patterns(method)?
            {
                let stored = std::mem::take(&mut self.stored);
                for (name, stored) in stored {
                    let moved = name.strip_prefix(SITE_PREFIX).and_then(|name| change.of(name));
                    self.insert(moved.map_or(name, |moved| format!("{SITE_PREFIX}{moved}")), stored)?;
                }
                return Ok(self);
            }
        }
        let leaf = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
        let leaves: BTreeSet<String> = paths.iter().map(|path| leaf(path)).collect();
        let module = |name: &str| {
            let known = method.tensor_names().iter().chain(&WHOLE_MODULE_NAMES);
            let path = known.filter_map(|known| name.strip_suffix(known)?.strip_suffix('.')).next();
            let path = path.or_else(|| Some(name.rsplit_once('.')?.0)).unwrap_or(name);
            // Where the model has modules of this name it is the place that is wrong.
            if leaves.contains(&leaf(path)) { path.to_owned() } else { leaf(path) }
        };
        let modules: BTreeSet<String> = unknown.iter().map(|name| module(name)).collect();
        let tensors = unknown.iter().map(|name| self.in_file(&format!("{SITE_PREFIX}{name}"))).collect();
        let (_, available) = nearest("", hosts);
        Err(Error::UnknownModules { modules: modules.into_iter().collect(), tensors, available })
    }

    /// Whether there is a tensor of the module at a path, or of one below it.
    pub(crate) fn has_module(&self, path: &str) -> bool {
        let start = format!("{SITE_PREFIX}{path}.");
        self.stored.range(start.clone()..).next().is_some_and(|(name, _)| name.starts_with(&start))
    }

    /// The name in the file; the given one when it is in no file.
    fn in_file(&self, name: &str) -> String {
        self.stored.get(name).map_or(name, String::as_str).to_owned()
    }

    /// An error with tensors by the names that the file has.
    pub(crate) fn in_words_of_the_file(&self, error: Error) -> Error {
        match error {
            Error::UnexpectedTensors(names) => {
                Error::UnexpectedTensors(names.iter().map(|name| self.in_file(name)).collect())
            }
            Error::At { place, error } => self.in_words_of_the_file(*error).at(place),
            error => error,
        }
    }
}

impl TensorSource for Keys<'_> {
    fn names(&self) -> BTreeSet<String> {
        self.stored.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        self.source.shape(self.stored.get(name)?)
    }

    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        self.stored.get(name).map_or(Ok(None), |stored| self.source.load(stored, device))
    }
}

/// A name without what only some files have in it.
struct Plain {
    name: String,
    /// The adapter that the name was of.
    adapter: Option<String>,
    /// Whether it is an untrained copy in a module that is trained as a whole.
    is_original: bool,
}

impl Plain {
    fn new(stored: &str, known: &[&str]) -> Self {
        let prefix = if stored.starts_with(SITE_PREFIX) || !stored.starts_with(PREFIX) { SITE_PREFIX } else { PREFIX };
        let name = stored.strip_prefix(prefix).unwrap_or(stored);
        let is_known = known.iter().any(|known| ends_with(name, known));
        let (mut name, mut adapter) = (name.to_owned(), None);
        if !is_known && let Some((plain, of)) = known.iter().find_map(|known| without_adapter(&name, known)) {
            (name, adapter) = (plain, Some(of));
        }
        // A name that is in the list with `.weight` and without it had it once.
        let had_weight = |name: &&str| name.strip_suffix(".weight").is_some_and(|plain| known.contains(&plain));
        if known.iter().filter(|known| ends_with(&name, known)).any(had_weight) {
            name.truncate(name.len() - ".weight".len());
        }
        let mut parts: Vec<&str> = name.split('.').collect();
        let is_original = parts.contains(&ORIGINAL);
        if is_original {
            parts.retain(|part| *part != ORIGINAL);
        } else if let Some(at) = parts.iter().position(|part| *part == TRAINED) {
            parts.remove(at);
            // Behind it are the adapter's name and the parameter's, or the parameter's alone.
            if parts.len() > at + 1 {
                adapter = Some(parts.remove(at).to_owned());
            }
        }
        Self { name: format!("{prefix}{}", parts.join(".")), adapter, is_original }
    }
}

/// Whether a name is another or ends with it behind a dot.
fn ends_with(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The name without an adapter's behind the first part of `known`, and the adapter's.
fn without_adapter(name: &str, known: &str) -> Option<(String, String)> {
    let (first, rest) = known.split_once('.').map_or((known, None), |(first, rest)| (first, Some(rest)));
    let start = match rest {
        Some(rest) => name.strip_suffix(rest)?.strip_suffix('.')?,
        None => name,
    };
    let (start, adapter) = start.rsplit_once('.')?;
    let is_name = !["weight", "bias"].contains(&adapter) && ends_with(start, first);
    is_name.then(|| (rest.map_or(start.to_owned(), |rest| format!("{start}.{rest}")), adapter.to_owned()))
}

/// How paths in a file may differ from those of a model.
#[derive(Clone, Copy)]
enum Move {
    Into(&'static str),
    OutOf(&'static str),
}

fn moves() -> impl Iterator<Item = Move> {
    BODIES.into_iter().flat_map(|body| [Move::Into(body), Move::OutOf(body)])
}

impl Move {
    fn of(self, name: &str) -> Option<String> {
        match self {
            Self::Into(body) => Some(format!("{body}.{name}")),
            Self::OutOf(body) => name.strip_prefix(body)?.strip_prefix('.').map(str::to_owned),
        }
    }

    /// Whether patterns of the config that choose ranks and scalings by path mean the same afterwards: they match the ends of paths
    /// unless they say otherwise.
    fn keeps_patterns(self, method: &BoxedMethod) -> Result<bool> {
        let config = method.to_json()?;
        let patterns = config.as_object().into_iter().flatten().filter(|(field, _)| field.ends_with("_pattern"));
        let mut keys = patterns.filter_map(|(_, patterns)| patterns.as_object()).flat_map(|patterns| patterns.keys());
        Ok(keys.all(|key| {
            let leaves = matches!(self, Self::OutOf(body) if key.starts_with(body));
            !key.contains('^') && !leaves
        }))
    }
}
