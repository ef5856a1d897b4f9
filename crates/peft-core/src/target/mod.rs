//! Which hosts a config selects, by PEFT's rules.

mod defaults;
mod matcher;
mod resolve;

pub use defaults::lora_targets;
pub use matcher::Matcher;
pub(crate) use matcher::saves;
pub(crate) use resolve::{nearest, resolve};

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// `target_modules` (and `exclude_modules`) of a config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModuleNames {
    /// `"all-linear"`, or a regular expression that must match a whole path.
    Pattern(String),
    /// Full paths, or suffixes of paths that begin at a dot.
    List(Vec<String>),
}

impl ModuleNames {
    /// Every linear layer but the output head.
    pub fn all_linear() -> Self {
        Self::Pattern("all-linear".into())
    }

    /// A list of names or suffixes.
    pub fn list<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::List(names.into_iter().map(Into::into).collect())
    }

    pub(crate) fn is_all_linear(&self) -> bool {
        matches!(self, Self::Pattern(p) if p.eq_ignore_ascii_case("all-linear"))
    }
}

impl fmt::Display for ModuleNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => write!(f, "`{pattern}`"),
            Self::List(names) => write!(f, "[{}]", names.join(", ")),
        }
    }
}

/// One value or a list of them, as PEFT's configs allow for some fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values as a slice.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// The fields of a PEFT config that decide which modules it touches. Flatten it into a method's config with serde.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetSpec {
    /// The modules to adapt; `null` takes the usual ones of the model's `model_type`.
    pub target_modules: Option<ModuleNames>,
    /// Modules never to adapt. Not every PEFT method has this field, so it is written only when set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<ModuleNames>,
    /// Only layers of these indices.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// The name of the list of layers, where it cannot be told from the path.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Modules to train and save as a whole, beside the adapters.
    pub modules_to_save: Option<Vec<String>>,
}

impl TargetSpec {
    /// Targets by name, all else at its default.
    pub fn new(target_modules: ModuleNames) -> Self {
        Self { target_modules: Some(target_modules), ..Self::default() }
    }

    /// Serializes all fields, also an `exclude_modules` that is not set: for methods whose config has that field in PEFT, as
    /// `#[serde(flatten, serialize_with = "TargetSpec::serialize_with_exclude_modules")]`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize_with_exclude_modules<S: Serializer>(targets: &Self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct All<'a> {
            exclude_modules: &'a Option<ModuleNames>,
            #[serde(flatten)]
            rest: &'a TargetSpec,
        }
        let rest = &Self { exclude_modules: None, ..targets.clone() };
        All { exclude_modules: &targets.exclude_modules, rest }.serialize(serializer)
    }

    /// Whether a layer filter is set; an empty list sets none.
    pub(crate) fn filters_layers(&self) -> bool {
        self.layers_to_transform.as_ref().is_some_and(|l| !l.as_slice().is_empty())
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// When `layers_pattern` is set without `layers_to_transform`, or a pattern does not compile.
    pub fn validate(&self) -> crate::Result<()> {
        let has_pattern = self.layers_pattern.as_ref().is_some_and(|p| p.as_slice().iter().any(|p| !p.is_empty()));
        if has_pattern && self.layers_to_transform.is_none() {
            return Err(crate::Error::config("`layers_pattern` is set, so `layers_to_transform` must be set too"));
        }
        Matcher::new(self).map(drop)
    }
}
