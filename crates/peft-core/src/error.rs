//! The one error type of the workspace's libraries.

use crate::HostKind;
use candle_core::Shape;
use std::path::{Path, PathBuf};

/// A `Result` whose error is [`enum@Error`] unless stated otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when adapters are configured, built, merged, saved or loaded.
///
/// A message says all there is to say: an error that wraps another prints it, and does not hand it out as its source too.
///
/// Messages are lower case, name the path, key or adapter at fault, and list the valid choices.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `target_modules` selected nothing, or one of its entries did.
    #[error("no module matches {pattern}{}; the model has {available}", .suggestion.as_deref().map(|s| format!(" (did you mean {s}?)")).unwrap_or_default())]
    NoTargetMatched {
        /// The pattern or list as it was configured.
        pattern: String,
        /// The nearest names of modules that exist.
        suggestion: Option<String>,
        /// The distinct module names that exist.
        available: String,
    },
    /// No method is registered under the `peft_type` of a config.
    #[error("unknown adapter method `{peft_type}`; registered: {registered}")]
    UnknownMethod {
        /// The tag found in the config; empty when there was none.
        peft_type: String,
        /// The tags that are registered.
        registered: String,
    },
    /// Two methods claim the same `peft_type`.
    #[error("method `{peft_type}` is already registered")]
    DuplicateMethod {
        /// The contested tag.
        peft_type: &'static str,
    },
    /// A target is of a kind that the method cannot adapt.
    #[error("{method} cannot adapt the {kind} at `{path}`; it adapts {adapts} layers")]
    UnsupportedHost {
        /// The method's `peft_type`.
        method: &'static str,
        /// The kind of layer found.
        kind: HostKind,
        /// The layer's path.
        path: String,
        /// The kinds of layers that the method adapts.
        adapts: String,
    },
    /// An adapter of this name is attached already.
    #[error("adapter `{0}` already exists")]
    DuplicateAdapter(String),
    /// No adapter of this name is attached.
    #[error("no adapter named `{name}`; the model has {available}")]
    UnknownAdapter {
        /// The name asked for.
        name: String,
        /// The names that exist.
        available: String,
    },
    /// A checkpoint that is to take an adapter's place is one of another method.
    #[error(
        "adapter `{adapter}` is a {attached} adapter and cannot be swapped for a {found} checkpoint; delete it and load the other"
    )]
    OtherMethod {
        /// The attached adapter.
        adapter: String,
        /// Its method's `peft_type`.
        attached: &'static str,
        /// The checkpoint's `peft_type`.
        found: &'static str,
    },
    /// A checkpoint that is to take an adapter's place adapts other modules.
    #[error("adapter `{adapter}` cannot be swapped for a checkpoint that adapts other modules: it {}", differing(.lacking, .extra))]
    OtherTargets {
        /// The attached adapter.
        adapter: String,
        /// The modules that the checkpoint lacks.
        lacking: Vec<String>,
        /// The modules that the adapter lacks.
        extra: Vec<String>,
    },
    /// An adapter name that cannot be a directory name and a checkpoint key at once.
    #[error("adapter name `{0}` is not usable: it must be non-empty, without `/`, `\\` or `.`")]
    AdapterName(String),
    /// The operation would disturb merged weights.
    #[error("cannot {attempted}: adapters are merged; unmerge first")]
    Merged {
        /// The operation.
        attempted: &'static str,
    },
    /// The method has no weight delta.
    #[error("{method} has no weight delta, so it cannot be merged")]
    NotMergeable {
        /// The method's `peft_type`.
        method: &'static str,
    },
    /// An adapter changes a bias that the layer does not have.
    #[error("the adapter changes the bias of a layer that has none, so it cannot be merged")]
    NoBias,
    /// A merged weight would hold NaN or infinity.
    #[error("adapter `{adapter}` would put NaN or infinity into the weight of `{path}`; nothing was merged")]
    NonFinite {
        /// The adapter at fault.
        adapter: String,
        /// The layer's path.
        path: String,
    },
    /// Merging one of two layers that share a weight would break the other or silently untie them.
    #[error(
        "`{path}` and `{other}` share one weight, so merging into one of them would break the tie; untie them first"
    )]
    TiedWeights {
        /// The layer to merge into.
        path: String,
        /// The layer that shares its weight.
        other: String,
    },
    /// Two active adapters both replace the same parameter.
    #[error("adapters `{first}` and `{second}` both replace the {what} of `{path}`; activate only one of them")]
    ConflictingReplacement {
        /// One adapter.
        first: String,
        /// The other adapter.
        second: String,
        /// `weight` or `bias`.
        what: &'static str,
        /// The layer's path.
        path: String,
    },
    /// A method broke its contract of one layer per site.
    #[error("{method} built {found} layers for {expected} sites")]
    LayerCount {
        /// The method's `peft_type`.
        method: &'static str,
        /// Number of sites.
        expected: usize,
        /// Number of layers built.
        found: usize,
    },
    /// A method asked for two parameters under one key.
    #[error("the method asks for the parameter `{0}` twice; make it once and hand clones to the layers that share it")]
    DuplicateParam(String),
    /// The checkpoint lacks a tensor that cannot be recomputed.
    #[error("the checkpoint has no tensor `{0}`")]
    MissingTensor(String),
    /// The checkpoint holds tensors that nothing read.
    #[error("the checkpoint has tensors that nothing reads: {}", preview(.0))]
    UnexpectedTensors(Vec<String>),
    /// A tensor's shape contradicts the config and the model.
    #[error("`{key}` has shape {found:?}, but the config and the model ask for {expected:?}")]
    ShapeMismatch {
        /// The tensor's name.
        key: String,
        /// The shape that fits.
        expected: Shape,
        /// The shape found.
        found: Shape,
    },
    /// Trainable parameters that a backward pass left without a gradient.
    #[error("no gradient reached {}: the loss does not depend on them, or an operation without a backward lies between", preview(.0))]
    MissingGradients(Vec<String>),
    /// A config value that is out of range, contradictory or not supported.
    #[error("invalid adapter config: {0}")]
    InvalidConfig(String),
    /// A config that is not valid JSON or lacks a field.
    #[error("invalid adapter config: {0}")]
    ConfigSyntax(#[from] serde_json::Error),
    /// A regular expression in a config that does not compile.
    #[error("bad pattern `{pattern}`: {message}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What the regex engine said.
        message: String,
    },
    /// A matrix without a singular value decomposition that could be used.
    #[error("no singular value decomposition: {0}")]
    Decomposition(String),
    /// Adapters that cannot be made into one.
    #[error("cannot combine adapters: {0}")]
    Combination(String),
    /// An adapter that cannot be written as one of another method, in the way that was asked for.
    #[error("cannot convert: {0}")]
    Conversion(String),
    /// The weight of a layer is not at hand: the adapter was opened without its base model.
    #[error("the base weight is needed, but the adapter was opened without its base model")]
    NoBaseWeight,
    /// A file format of another program cannot hold what an adapter does to a layer.
    #[error("{format} cannot hold the adapter of `{path}`: {reason}")]
    NotExportable {
        /// The format, with its article.
        format: &'static str,
        /// The layer's path.
        path: String,
        /// Why not, and what to do instead.
        reason: String,
    },
    /// An adapter that only its base model explains was opened without it.
    #[error(
        "the modules that a {method} adapter adapts cannot be told from its tensors alone: the base model must be given too (to \
         make an adapter of it that needs none: `candle-peft convert --base`)"
    )]
    NeedsBase {
        /// The method's `peft_type`.
        method: &'static str,
    },
    /// A compact checkpoint was opened without its base model.
    #[error(
        "a compact checkpoint holds what was trained and no factors: {} must be given too (to make files that need none: \
         `candle-peft convert --to peft --base`)", .base.as_deref().map_or("its base model".to_owned(), |base| format!("its base model, `{base}`,"))
    )]
    CompactNeedsBase {
        /// What the checkpoint calls its base.
        base: Option<String>,
    },
    /// A compact checkpoint on other weights than those it was made on.
    #[error("the compact checkpoint was made on `{base}`, and this base model has other weights: {}", other_weights(.module.as_deref(), *.counts))]
    OtherWeights {
        /// What the checkpoint calls its base.
        base: String,
        /// The first module whose weight differs; `None` when the stored parts of hashes do not tell it.
        module: Option<String>,
        /// How many modules the checkpoint was made on, and how many are adapted here.
        counts: (usize, usize),
    },
    /// A compact checkpoint would leave nothing out.
    #[error(
        "a compact checkpoint of this {method} adapter would leave nothing out: all that its files hold was trained. Save it in \
         PEFT's layout"
    )]
    NothingDerived {
        /// The method's `peft_type`.
        method: &'static str,
    },
    /// A compact checkpoint would change the adapter.
    #[error(
        "`{key}` came with the adapter and is not what is made of the base model here (another program chose other signs, or it is of \
         another base), so a compact checkpoint would change the adapter. Save it in PEFT's layout"
    )]
    NotDerived {
        /// The first such tensor.
        key: String,
    },
    /// A model folder that does not describe a model that can be loaded.
    #[error("{}: {message}", .path.display())]
    Model {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} {}: {error}", .path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        error: std::io::Error,
    },
    /// A safetensors file whose header and data do not agree.
    #[error("{} is not a valid safetensors file: {message}", .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        message: String,
    },
    /// A file of `torch.save` that is not a flat dictionary of tensors, or says of itself what cannot be.
    #[error(
        "cannot read {}: {message}; load the adapter with PEFT and save it again, or write its tensors anew: \
         python -c \"import torch, safetensors.torch as s; \
         s.save_file({{k: v.contiguous() for k, v in torch.load('adapter_model.bin', weights_only=True).items()}}, \
         'adapter_model.safetensors')\"",
        .path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Names of tensors that could mean more than one thing.
    #[error("the names of the checkpoint's tensors are ambiguous: {0}")]
    AmbiguousTensors(String),
    /// The checkpoint was made for a model with other modules.
    #[error(
        "the checkpoint has tensors for modules that the model lacks ({}): {}; the model has {available}",
        preview(.modules), preview(.tensors)
    )]
    UnknownModules {
        /// The last names of the modules, or their paths where the model has modules of that name elsewhere.
        modules: Vec<String>,
        /// The names of the tensors.
        tensors: Vec<String>,
        /// The distinct module names that exist.
        available: String,
    },
    /// An error with what may have led to it.
    #[error("{error}; {reason}")]
    Because {
        /// The error itself.
        error: Box<Error>,
        /// What may have led to it.
        reason: String,
    },
    /// An error with the place in the model or on disk where it happened.
    #[error("{place}: {error}")]
    At {
        /// The module path or file.
        place: String,
        /// The error itself.
        error: Box<Error>,
    },
    /// An error of a method from another crate.
    #[error("{method} failed: {error}")]
    Method {
        /// The method's `peft_type`.
        method: &'static str,
        /// The method's own error.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// This error with the module path or file where it happened in front.
    pub fn at(self, place: impl Into<String>) -> Self {
        Self::At { place: place.into(), error: Box::new(self) }
    }

    /// This error with what may have led to it behind.
    pub fn because(self, reason: impl Into<String>) -> Self {
        Self::Because { error: Box::new(self), reason: reason.into() }
    }

    /// Whether the base model alone is missing: [`Error::NeedsBase`] or [`Error::CompactNeedsBase`], wherever it happened.
    pub fn needs_base(&self) -> bool {
        match self {
            Self::At { error, .. } | Self::Because { error, .. } => error.needs_base(),
            Self::NeedsBase { .. } | Self::CompactNeedsBase { .. } => true,
            _ => false,
        }
    }

    /// An I/O error with what was attempted and where.
    pub fn io(action: &'static str, path: impl AsRef<Path>, error: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), error }
    }

    /// A config error from its message.
    pub fn config(message: impl Into<String>) -> Self {
        Self::InvalidConfig(message.into())
    }

    /// A conversion error from its message.
    pub fn conversion(message: impl Into<String>) -> Self {
        Self::Conversion(message.into())
    }

    /// A model folder error from its message.
    pub fn model(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Model { path: path.as_ref().to_owned(), message: message.into() }
    }
}

/// Lets `?` cross into candle-typed code such as training loops.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}

/// The first names of a list, and how many more there are.
pub(crate) fn preview(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A name from a file, which may be of any length and hold anything.
pub(crate) fn quoted(name: &str) -> String {
    const LONGEST: usize = 200;
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let end = if name.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("`{}{end}`", name.chars().take(LONGEST).map(printable).collect::<String>())
}

/// How a checkpoint's modules differ from those of an adapter.
fn differing(lacking: &[String], extra: &[String]) -> String {
    let parts = [("lacks", lacking), ("also adapts", extra)].into_iter().filter(|(_, names)| !names.is_empty());
    parts.map(|(does, names)| format!("{does} {}", preview(names))).collect::<Vec<_>>().join(" and ")
}

/// How the weights of a base model differ from those of a compact checkpoint.
fn other_weights(module: Option<&str>, (made, here): (usize, usize)) -> String {
    match module {
        Some(path) => format!("that of `{path}` is the first that differs"),
        None if made != here => format!("it adapts {made} modules there and {here} here"),
        None => "which module's differs cannot be told".to_owned(),
    }
}
