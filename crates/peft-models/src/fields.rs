//! The fields of a `config.json`, read one by one so that an error can name the field at fault.

use peft_core::{Error, OneOrMany, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A `config.json` and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    origin: PathBuf,
    fields: Map<String, Value>,
}

impl Fields {
    pub(crate) fn new(fields: Map<String, Value>, origin: impl Into<PathBuf>) -> Self {
        Self { origin: origin.into(), fields }
    }

    pub(crate) fn parse(text: &str, origin: impl Into<PathBuf>) -> Result<Self> {
        let origin = origin.into();
        match serde_json::from_str(text) {
            Ok(fields) => Ok(Self { origin, fields }),
            Err(e) => Err(Error::model(origin, format!("not a JSON object: {e}"))),
        }
    }

    pub(crate) fn all(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// An error that names this file.
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::model(&self.origin, message)
    }

    /// A field that must be there.
    pub(crate) fn require<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        self.optional(key)?.ok_or_else(|| self.error(format!("`{key}` is missing")))
    }

    /// A field that may be absent or `null`.
    pub(crate) fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(value) {
                Ok(parsed) => Ok(Some(parsed)),
                Err(e) => Err(self.error(format!("`{key}` is {value}: {e}"))),
            },
        }
    }

    pub(crate) fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// A field that may be absent or `null`, and must have one of these values otherwise.
    pub(crate) fn one_of(&self, key: &str, supported: &[&str]) -> Result<()> {
        match self.optional::<String>(key)? {
            Some(value) if !supported.contains(&value.as_str()) => {
                Err(self.error(format!("`{key}` is `{value}`; supported: {}", supported.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Token ids given as one number or a list of them.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        Ok(self.optional::<OneOrMany<u32>>(key)?.map(|ids| ids.as_slice().to_vec()).unwrap_or_default())
    }

    /// An object inside this one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        let fields = self.optional::<Map<String, Value>>(key)?;
        Ok(fields.map(|fields| Self::new(fields, &self.origin)))
    }
}

/// Token ids as configs spell them: nothing, one number, or a list.
pub(crate) fn json_token_ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}

/// An error message unless every named number is at least one.
pub(crate) fn all_positive(numbers: &[(&str, usize)]) -> Result<(), String> {
    match numbers.iter().find(|(_, number)| *number == 0) {
        Some((name, _)) => Err(format!("`{name}` is 0, it must be at least 1")),
        None => Ok(()),
    }
}
