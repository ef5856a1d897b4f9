//! IA3's fields of `adapter_config.json`.

use crate::feedforward::Feedforward;
use peft_core::{Error, ModuleNames, Result, TargetSpec};
use serde::{Deserialize, Serialize, Serializer};

/// IA3: adapted layers have their outputs, feed-forward layers their inputs, multiplied by a trained vector `ia3_l`.
///
/// Fields have PEFT's names, defaults and meaning. Linear layers, Conv1D among them, can be adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Ia3Config {
    /// Which of the adapted modules have their inputs scaled: a list of names, each of which ends the paths of the modules it means
    /// (with or without a dot before it), or a regular expression that must match a whole path. A list must be part of a list in
    /// `target_modules`. `null` takes the usual ones of the model's `model_type`.
    pub feedforward_modules: Option<ModuleNames>,
    /// Whether base weights are stored `(in, out)`. Told from the model: what a config says here is replaced.
    pub fan_in_fan_out: bool,
    /// Whether fresh vectors are ones, so that the adapter begins as the identity. Otherwise they are drawn from a standard normal
    /// distribution, as in PEFT, which advises against it.
    pub init_ia3_weights: bool,
    /// Which modules are adapted. IA3 has no `layers_to_transform` and no `layers_pattern`: setting one is an error.
    #[serde(flatten, serialize_with = "without_layers")]
    pub targets: TargetSpec,
}

impl Default for Ia3Config {
    fn default() -> Self {
        Self {
            feedforward_modules: None,
            fan_in_fan_out: false,
            init_ia3_weights: true,
            targets: TargetSpec::default(),
        }
    }
}

impl Ia3Config {
    /// PEFT's defaults for these modules, of which `feedforward_modules` have their inputs scaled.
    pub fn new<S: Into<String>, F: Into<String>>(
        target_modules: impl IntoIterator<Item = S>,
        feedforward_modules: impl IntoIterator<Item = F>,
    ) -> Self {
        Self {
            feedforward_modules: Some(ModuleNames::list(feedforward_modules)),
            targets: TargetSpec::new(ModuleNames::list(target_modules)),
            ..Self::default()
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, is_set) in [
            ("layers_to_transform", self.targets.layers_to_transform.is_some()),
            ("layers_pattern", self.targets.layers_pattern.is_some()),
        ] {
            if is_set {
                return Err(Error::config(format!(
                    "IA3 has no `{name}`; select modules with `target_modules` and `exclude_modules`"
                )));
            }
        }
        if let (Some(ModuleNames::List(names)), Some(ModuleNames::List(targets))) =
            (&self.feedforward_modules, &self.targets.target_modules)
            && let Some(name) = names.iter().find(|name| !targets.contains(name))
        {
            return Err(Error::config(format!(
                "`feedforward_modules` must be a subset of `target_modules`: `{name}` is not among {}",
                targets.join(", ")
            )));
        }
        self.feedforward_modules.as_ref().map_or(Ok(()), |names| Feedforward::new(names).map(drop))
    }
}

/// IA3's part of the fields of a [`TargetSpec`].
fn without_layers<S: Serializer>(targets: &TargetSpec, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields<'a> {
        target_modules: &'a Option<ModuleNames>,
        exclude_modules: &'a Option<ModuleNames>,
        modules_to_save: &'a Option<Vec<String>>,
    }
    let TargetSpec { target_modules, exclude_modules, modules_to_save, .. } = targets;
    Fields { target_modules, exclude_modules, modules_to_save }.serialize(serializer)
}
