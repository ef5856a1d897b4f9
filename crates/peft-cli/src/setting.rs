//! `--set KEY=VALUE`.

use crate::output::usage_error;
use anyhow::Result;
use serde_json::Value;

/// One config field and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: Value,
}

/// Fields that name modules: a single bare name means a list of one, as PEFT takes a lone text for a regular expression.
const MODULE_NAMES: [&str; 3] = ["target_modules", "exclude_modules", "modules_to_save"];
/// The one bare word that is not a module's name.
const ALL_LINEAR: &str = "all-linear";

impl Setting {
    /// Reads `KEY=VALUE`.
    ///
    /// The value is JSON where it parses as such; else a list where it looks like one, `[a,b]` or `a,b` with plain names;
    /// else text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
            return Err(usage_error(format!("--set {text}: expected KEY=VALUE")));
        };
        let key = key.trim().to_owned();
        let value = match parse_value(value.trim()) {
            Value::String(name) if MODULE_NAMES.contains(&key.as_str()) && is_name(&name) && name != ALL_LINEAR => {
                Value::Array(vec![Value::String(name)])
            }
            value => value,
        };
        Ok(Self { key, value })
    }
}

fn parse_value(text: &str) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    let items = |list: &str| list.split(',').map(|item| parse_value(item.trim())).collect();
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(list) => Value::Array(items(list)),
        None if text.contains(',') && text.split(',').all(|item| is_name(item.trim())) => Value::Array(items(text)),
        None => Value::String(text.to_owned()),
    }
}

/// Whether a text can be a module's name and not a regular expression.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(text: &str) -> Value {
        Setting::parse(text).map(|setting| setting.value).unwrap_or_default()
    }

    #[test]
    fn values_are_json_lists_or_text() {
        assert_eq!(value("r=2"), json!(2));
        assert_eq!(value("weight_tying=1.0"), json!(1.0));
        assert_eq!(value("save_projection=false"), json!(false));
        assert_eq!(value("layers_pattern=null"), json!(null));
        assert_eq!(value("init_weights=uniform"), json!("uniform"));
        assert_eq!(value("layers_to_transform=[0,2]"), json!([0, 2]));
        assert_eq!(value("layers_to_transform=0,2"), json!([0, 2]));
        assert_eq!(value("rank_pattern={\"q_proj\": 4}"), json!({"q_proj": 4}));
    }

    #[test]
    fn module_names_are_lists_and_patterns_are_text() {
        assert_eq!(value("target_modules=all-linear"), json!("all-linear"));
        assert_eq!(value("target_modules=q_proj"), json!(["q_proj"]));
        assert_eq!(value("target_modules=q_proj,self_attn.v_proj"), json!(["q_proj", "self_attn.v_proj"]));
        assert_eq!(value("target_modules=[q_proj, v_proj]"), json!(["q_proj", "v_proj"]));
        assert_eq!(value("target_modules=[\"q_proj\"]"), json!(["q_proj"]));
        assert_eq!(value(r"target_modules=.*\.(q|v)_proj"), json!(r".*\.(q|v)_proj"));
        assert_eq!(value(r"target_modules=.*\.\d{1,2}\.mlp\.up_proj"), json!(r".*\.\d{1,2}\.mlp\.up_proj"));
    }

    #[test]
    fn a_setting_needs_a_key() {
        assert!(Setting::parse("r").is_err());
        assert!(Setting::parse("=2").is_err());
    }
}
