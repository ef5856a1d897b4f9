//! The parameters of an adapter: created fresh, or read when a checkpoint backs the build.

use crate::checkpoint::BASE_TENSORS;
use crate::torch_rng::TorchRng;
use crate::{Decomposer, Error, Mode, Result};
use candle_core::{DType, Device, Shape, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Where a parameter lives in a checkpoint: under one module, or shared by the whole adapter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParamKey {
    /// `base_model.model.{path}.{name}`.
    Site {
        /// The module's path in the base model.
        path: String,
        /// The tensor's name below it, such as `lora_A.weight`.
        name: String,
    },
    /// `base_model.{name}`.
    Shared {
        /// The tensor's name, such as `tinylora_v.0`.
        name: String,
    },
}

impl ParamKey {
    /// The key of a tensor that belongs to one module.
    pub fn site(path: &str, name: &str) -> Self {
        Self::Site { path: path.into(), name: name.into() }
    }

    /// The key of a tensor that belongs to the whole adapter.
    pub fn shared(name: impl Into<String>) -> Self {
        Self::Shared { name: name.into() }
    }
}

/// The name in a PEFT checkpoint.
impl fmt::Display for ParamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site { path, name } => write!(f, "{SITE_PREFIX}{path}.{name}"),
            Self::Shared { name } => write!(f, "base_model.{name}"),
        }
    }
}

/// What PEFT puts before the path of a module of the base model.
pub(crate) const SITE_PREFIX: &str = "base_model.model.";

/// A trainable parameter and an untracked view of the same storage.
///
/// Inference reads the view, builds no graph, and still sees every update of an optimiser.
#[derive(Clone, Debug)]
pub struct Param {
    var: Var,
    view: Tensor,
}

impl Param {
    pub(crate) fn new(var: Var) -> Self {
        let view = var.as_detached_tensor();
        Self { var, view }
    }

    /// The tensor to compute with: tracked in training, untracked at inference.
    #[inline]
    pub fn read(&self, mode: Mode) -> &Tensor {
        match mode {
            Mode::Train => self.var.as_tensor(),
            Mode::Infer => &self.view,
        }
    }

    /// The variable, for an optimiser.
    pub fn var(&self) -> &Var {
        &self.var
    }
}

/// Whether a frozen tensor is written to checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Persist {
    /// It is part of every checkpoint.
    Always,
    /// It follows from the config and the base model's weights. Compact checkpoints leave it out, and only they.
    Derived,
    /// It can be made again, and is left out.
    Never,
}

#[derive(Clone, Debug)]
enum Entry {
    Trainable(Param),
    Frozen { tensor: Tensor, persist: Persist, read: bool },
}

/// All parameters of one adapter, by key.
#[derive(Clone, Debug, Default)]
pub struct ParamStore {
    entries: BTreeMap<ParamKey, Entry>,
}

impl ParamStore {
    /// The trainable parameters, in key order.
    pub fn trainable(&self) -> impl Iterator<Item = (&ParamKey, &Var)> {
        self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Trainable(param) => Some((key, param.var())),
            Entry::Frozen { .. } => None,
        })
    }

    /// What a checkpoint holds, in key order.
    pub fn persisted(&self) -> impl Iterator<Item = (&ParamKey, &Tensor)> {
        self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Trainable(param) => Some((key, param.read(Mode::Infer))),
            Entry::Frozen { persist: Persist::Never, .. } => None,
            Entry::Frozen { tensor, .. } => Some((key, tensor)),
        })
    }

    /// What a compact checkpoint holds, in key order.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&ParamKey, &Tensor)> {
        self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Trainable(param) => Some((key, param.read(Mode::Infer))),
            Entry::Frozen { tensor, persist: Persist::Always, .. } => Some((key, tensor)),
            Entry::Frozen { .. } => None,
        })
    }

    /// What a compact checkpoint leaves out of a usual one, and whether it was read from a checkpoint.
    pub(crate) fn derived(&self) -> impl Iterator<Item = (&ParamKey, &Tensor, bool)> {
        self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Frozen { tensor, persist: Persist::Derived, read } => Some((key, tensor, *read)),
            _ => None,
        })
    }

    /// One tensor, persisted or not.
    pub fn tensor(&self, key: &ParamKey) -> Option<&Tensor> {
        self.entries.get(key).map(|entry| match entry {
            Entry::Trainable(param) => param.read(Mode::Infer),
            Entry::Frozen { tensor, .. } => tensor,
        })
    }

    /// Number of trainable numbers.
    pub fn trainable_count(&self) -> usize {
        self.trainable().map(|(_, var)| var.elem_count()).sum()
    }
}

/// Something that tensors can be read from by name, such as a checkpoint.
pub trait TensorSource: Send + Sync {
    /// The names of all tensors.
    fn names(&self) -> BTreeSet<String>;

    /// The shape of one tensor, without reading it.
    fn shape(&self, name: &str) -> Option<Shape>;

    /// Reads one tensor in its own dtype.
    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>>;
}

impl TensorSource for BTreeMap<String, Tensor> {
    fn names(&self) -> BTreeSet<String> {
        self.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        self.get(name).map(|t| t.shape().clone())
    }

    fn load(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        Ok(self.get(name).map(|t| t.to_device(device)).transpose()?)
    }
}

/// Creates the parameters of an adapter, or reads them when a checkpoint backs the build.
///
/// A method asks for each parameter once, with its key, shape and how to make it; where the values come from is not its
/// concern. [`ParamBuilder::finish`] fails when the checkpoint holds tensors that nobody asked for.
pub struct ParamBuilder<'a> {
    source: Option<&'a dyn TensorSource>,
    unread: BTreeSet<String>,
    store: ParamStore,
    rng: TorchRng,
    decomposer: Decomposer,
    /// Whether the checkpoint leaves out what follows from config and base.
    compact: bool,
}

impl<'a> ParamBuilder<'a> {
    /// A builder that reads from `source`, or makes everything fresh when there is none.
    pub fn new(source: Option<&'a dyn TensorSource>) -> Self {
        let unread = source.map(|s| s.names()).unwrap_or_default();
        let (store, rng, decomposer) = (ParamStore::default(), TorchRng::new(0), Decomposer::default());
        Self { source, unread, store, rng, decomposer, compact: false }
    }

    /// The same builder with another generator for random initial values.
    pub fn with_rng(mut self, rng: TorchRng) -> Self {
        self.rng = rng;
        self
    }

    /// The same builder with another way to decompose weights.
    pub fn with_decomposer(mut self, decomposer: &Decomposer) -> Self {
        self.decomposer = decomposer.clone();
        self
    }

    /// The same builder on a compact checkpoint, whose base was checked.
    pub(crate) fn compact(mut self) -> Self {
        self.compact = true;
        BASE_TENSORS.iter().for_each(|name| {
            self.unread.remove(*name);
        });
        self
    }

    /// What decomposes weights.
    pub fn decomposer(&self) -> &Decomposer {
        &self.decomposer
    }

    /// The generator for random initial values; it plays the part of PyTorch's global generator.
    pub fn rng(&mut self) -> &mut TorchRng {
        &mut self.rng
    }

    /// Whether a checkpoint backs this build.
    pub fn is_loading(&self) -> bool {
        self.source.is_some()
    }

    /// Whether tensors that are [`Persist::Derived`] are made: those of a fresh adapter, and those that a compact checkpoint leaves out.
    pub fn makes_derived(&self) -> bool {
        !self.is_loading() || self.compact
    }

    /// Whether the checkpoint holds this tensor.
    pub fn has(&self, key: &ParamKey) -> bool {
        self.source.is_some_and(|s| s.shape(&key.to_string()).is_some())
    }

    /// Holds the checkpoint, if one backs the build, to a tensor of this shape before it is asked for: sizes in a config can be
    /// wrong, and this way nothing of a wrong size is made.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::ShapeMismatch`].
    pub fn require(&self, key: &ParamKey, shape: impl Into<Shape>) -> Result<()> {
        let Some(source) = self.source else { return Ok(()) };
        let (key, expected) = (key.to_string(), shape.into());
        match source.shape(&key) {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(Error::ShapeMismatch { key, expected, found }),
            None => Err(Error::MissingTensor(key)),
        }
    }

    /// A trainable parameter.
    ///
    /// # Errors
    /// When the key was asked for before, a checkpoint backs the build and lacks the tensor or has it in another shape, or `init`
    /// fails.
    pub fn trainable(
        &mut self,
        key: ParamKey,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
        init: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Param> {
        let shape = shape.into();
        let tensor = match self.fetch(&key, &shape, dtype, device)? {
            Some(tensor) => tensor,
            None if self.is_loading() => return Err(Error::MissingTensor(key.to_string())),
            None => checked(&key, &shape, init()?)?.to_dtype(dtype)?.to_device(device)?,
        };
        // Detached, a variable of somebody else is copied like any tensor; otherwise two would train one storage.
        let param = Param::new(Var::from_tensor(&tensor.detach().contiguous()?)?);
        self.keep(key, Entry::Trainable(param.clone()))?;
        Ok(param)
    }

    /// A frozen tensor. One that is not persisted is made again by `init` when the checkpoint leaves it out, so it has to follow
    /// from the config and the model alone.
    ///
    /// # Errors
    /// When the key was asked for before, a checkpoint backs the build and lacks a persisted tensor or has it in another shape, or
    /// `init` fails.
    pub fn frozen(
        &mut self,
        key: ParamKey,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
        persist: Persist,
        init: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let made = match persist {
            Persist::Always => !self.is_loading(),
            Persist::Derived => self.makes_derived(),
            Persist::Never => true,
        };
        let (tensor, read) = match self.fetch(&key, &shape, dtype, device)? {
            Some(tensor) => (tensor, true),
            None if made => (checked(&key, &shape, init()?)?.to_dtype(dtype)?.to_device(device)?, false),
            None => return Err(Error::MissingTensor(key.to_string())),
        };
        self.keep(key, Entry::Frozen { tensor: tensor.clone(), persist, read })?;
        Ok(tensor)
    }

    /// Changes whether a frozen tensor is written.
    pub(crate) fn persist(&mut self, key: &ParamKey, to: Persist) {
        if let Some(Entry::Frozen { persist, .. }) = self.store.entries.get_mut(key) {
            *persist = to;
        }
    }

    /// The parameters, once every one has been asked for.
    ///
    /// # Errors
    /// [`Error::UnexpectedTensors`] when the checkpoint holds tensors that nobody read.
    pub fn finish(self) -> Result<ParamStore> {
        if self.unread.is_empty() {
            Ok(self.store)
        } else {
            Err(Error::UnexpectedTensors(self.unread.into_iter().collect()))
        }
    }

    /// Two parameters under one key would be one in a checkpoint, and an optimiser would see one of them.
    fn keep(&mut self, key: ParamKey, entry: Entry) -> Result<()> {
        if self.store.entries.contains_key(&key) {
            return Err(Error::DuplicateParam(key.to_string()));
        }
        self.store.entries.insert(key, entry);
        Ok(())
    }

    fn fetch(&mut self, key: &ParamKey, shape: &Shape, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let Some(source) = self.source else { return Ok(None) };
        let name = key.to_string();
        // The header is checked before the tensor is read, so a wrong shape costs no memory.
        match source.shape(&name) {
            Some(found) if found != *shape => {
                return Err(Error::ShapeMismatch { key: name, expected: shape.clone(), found });
            }
            Some(_) => {}
            None => return Ok(None),
        }
        let tensor = source.load(&name, device)?;
        self.unread.remove(&name);
        Ok(tensor.map(|t| t.to_dtype(dtype)).transpose()?)
    }
}

/// Guards the contract that `init` makes what was announced.
fn checked(key: &ParamKey, shape: &Shape, tensor: Tensor) -> Result<Tensor> {
    if tensor.shape() == shape {
        Ok(tensor)
    } else {
        Err(Error::ShapeMismatch { key: key.to_string(), expected: shape.clone(), found: tensor.shape().clone() })
    }
}
