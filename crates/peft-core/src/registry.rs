//! Methods by their `peft_type`.

use crate::{AdapterConfig, AdapterMethod, BoxedMethod, Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

type Parse = fn(Map<String, Value>) -> Result<BoxedMethod>;

/// The methods that configs can name. An ordinary value: no globals, and outside crates register theirs like built-in ones.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    parsers: BTreeMap<&'static str, Parse>,
}

impl Registry {
    /// A registry that knows no method yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a method under its `peft_type`.
    ///
    /// # Errors
    /// [`Error::DuplicateMethod`] when the tag is taken.
    pub fn register<M: AdapterMethod>(&mut self) -> Result<&mut Self> {
        if self.parsers.contains_key(M::PEFT_TYPE) {
            return Err(Error::DuplicateMethod { peft_type: M::PEFT_TYPE });
        }
        self.parsers.insert(M::PEFT_TYPE, |fields| Ok(serde_json::from_value::<M>(Value::Object(fields))?.into()));
        Ok(self)
    }

    /// The tags that are registered, sorted.
    pub fn methods(&self) -> impl Iterator<Item = &'static str> {
        self.parsers.keys().copied()
    }

    /// Parses and validates the text of an `adapter_config.json`.
    ///
    /// Fields that the method does not know survive in [`AdapterMeta::unknown`](crate::AdapterMeta::unknown).
    ///
    /// # Errors
    /// When the text is not a JSON object, names no registered method, or holds values out of range.
    pub fn parse(&self, json: &str) -> Result<AdapterConfig> {
        self.parse_fields(serde_json::from_str(json)?)
    }

    /// As [`Registry::parse`], from fields that were read or put together before.
    pub fn parse_fields(&self, fields: Map<String, Value>) -> Result<AdapterConfig> {
        let peft_type = fields.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        let parse = self.parsers.get(peft_type).ok_or_else(|| Error::UnknownMethod {
            peft_type: peft_type.to_owned(),
            registered: self.parsers.keys().copied().collect::<Vec<_>>().join(", "),
        })?;
        let mut own = fields.clone();
        own.remove("peft_type");
        let method = parse(own.clone()).or_else(|_| {
            let own = without_unset(*parse, own);
            parse(own.clone()).map_err(|e| name_field(*parse, &own, e))
        })?;
        let config = AdapterConfig::from_parts(method, fields)?;
        config.method.validate()?;
        Ok(config)
    }
}

/// The fields without those that are `null` for a flag, which to PEFT is one that is not set, or for an empty map of patterns.
fn without_unset(parse: Parse, mut fields: Map<String, Value>) -> Map<String, Value> {
    let rest = fields.clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    let Ok(defaults) = parse(rest).and_then(|method| method.to_json()) else { return fields };
    fields.retain(|key, value| {
        let default = defaults.get(key).filter(|_| value.is_null());
        let is_unset = matches!(default, Some(Value::Bool(false))) || default == Some(&Value::Object(Map::new()));
        !is_unset
    });
    fields
}

/// Above this many fields the one at fault is not looked for: each takes a parse of all others.
const SEARCHED: usize = 500;

/// Serde does not say which field of a flattened struct is at fault; it is the one without which the rest parses.
fn name_field(parse: Parse, fields: &Map<String, Value>, error: Error) -> Error {
    let culprit = fields.iter().filter(|_| fields.len() <= SEARCHED).find(|(key, _)| {
        let mut rest = fields.clone();
        rest.remove(*key);
        parse(rest).is_ok()
    });
    let message = match &error {
        Error::ConfigSyntax(error) => error.to_string(),
        error => error.to_string(),
    };
    match culprit {
        Some((key, value)) => Error::config(format!("`{key}` is {value}: {message}")),
        None => error,
    }
}
