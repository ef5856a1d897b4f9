//! The config of a new adapter, from a file or from a method's defaults.

use crate::args::MethodArgs;
use crate::output::usage_error;
use crate::setting::Setting;
use anyhow::{Context, Result};
use candle_peft::core::checkpoint::{CONFIG_FILE, read_config_text};
use candle_peft::hub::Part;
use candle_peft::{AdapterConfig, Pretrained, Registry};
use serde_json::{Map, Value};
use std::path::Path;

const PEFT_TYPE: &str = "peft_type";

impl MethodArgs {
    /// Whether a new adapter is asked for at all.
    pub(crate) fn is_given(&self) -> bool {
        self.config.is_some() || self.method.is_some()
    }

    /// The validated config.
    ///
    /// A mistake in `--method` or `--set` is a usage error, one in the file of `--config` is not.
    pub(crate) fn adapter_config(&self, pretrained: &Pretrained) -> Result<AdapterConfig> {
        let registry = pretrained.registry();
        let settings = self.set.iter().map(|text| Setting::parse(text)).collect::<Result<Vec<_>>>()?;
        let fields = match (&self.config, &self.method) {
            (Some(name), _) => read_config(name, pretrained)?,
            // Every model here is a causal language model, and PEFT's `AutoPeftModel` needs to be told.
            (None, Some(method)) => Map::from_iter([
                (PEFT_TYPE.to_owned(), peft_type(method, registry)?.into()),
                ("task_type".to_owned(), "CAUSAL_LM".into()),
            ]),
            (None, None) => return Err(usage_error("a new adapter needs --method METHOD or --config FILE")),
        };
        if settings.is_empty() {
            return Ok(registry.parse_fields(fields)?);
        }
        let known = known_fields(&fields, registry)?;
        for Setting { key, .. } in &settings {
            if !known.contains(key) {
                let known = known.join(", ");
                return Err(usage_error(format!("--set {key}: no such field; the method has {known}")));
            }
        }
        let with = |settings: &[Setting]| {
            let mut fields = fields.clone();
            fields.extend(settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())));
            registry.parse_fields(fields)
        };
        with(&settings).map_err(|error| {
            // Which one is it? A setting that fails by itself.
            let culprit =
                settings.iter().find_map(|setting| Some((setting, with(std::slice::from_ref(setting)).err()?)));
            match culprit {
                Some((setting, error)) => usage_error(format!("--set {}={}: {error}", setting.key, setting.value)),
                None => usage_error(format!("--set: {error}")),
            }
        })
    }
}

fn read_config(name: &str, pretrained: &Pretrained) -> Result<Map<String, Value>> {
    let file = match Path::new(name) {
        file if file.is_file() => file.to_owned(),
        _ => pretrained.folder(name, Part::AdapterConfig)?.path().join(CONFIG_FILE),
    };
    let text = read_config_text(&file)?;
    // Parsed as a whole first: what is wrong with the file is not the fault of a setting.
    pretrained.registry().parse(&text).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// The registered tag of a method, whatever its case and separators.
fn peft_type(method: &str, registry: &Registry) -> Result<&'static str> {
    let plain = |name: &str| name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    registry.methods().find(|tag| plain(tag) == plain(method)).ok_or_else(|| {
        let known = registry.methods().map(str::to_lowercase).collect::<Vec<_>>().join(", ");
        usage_error(format!("--method {method}: no such method; there are {known}"))
    })
}

/// The fields that a config of this method has.
fn known_fields(fields: &Map<String, Value>, registry: &Registry) -> Result<Vec<String>> {
    let tag = Map::from_iter(fields.get_key_value(PEFT_TYPE).map(|(key, value)| (key.clone(), value.clone())));
    let defaults: Map<String, Value> = serde_json::from_str(&registry.parse_fields(tag)?.to_json()?)?;
    Ok(defaults.into_iter().map(|(key, _)| key).filter(|key| key != PEFT_TYPE).collect())
}
