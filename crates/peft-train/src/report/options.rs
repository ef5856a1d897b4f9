//! The options of a run.

use super::text::{escape, excerpt};
use crate::error::{Error, Result};
use crate::json_lines::Object;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

const LONGEST: usize = 500;

/// The fields of `run.json`.
#[derive(Debug, Default)]
pub(super) struct Options(Object);

impl Options {
    /// No options where there is no file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map(Self).map_err(|error| {
                // The error's own text ends with the place, which is said already.
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                Error::row(path, error.line(), message)
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    /// A table, or nothing.
    pub(super) fn html(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        push_rows(&mut rows, "", &self.0);
        format!(
            "<section><h2>Options</h2>\n<div class=\"wide\"><table class=\"options\">\n{rows}</table></div></section>\n"
        )
    }
}

fn push_rows(rows: &mut String, prefix: &str, fields: &Object) {
    for (name, value) in fields {
        let name = format!("{prefix}{name}");
        let text = match value {
            Value::Object(fields) if !fields.is_empty() => {
                push_rows(rows, &format!("{name}."), fields);
                continue;
            }
            Value::String(text) => text.clone(),
            Value::Null => "none".to_owned(),
            value => value.to_string(),
        };
        let (name, text) = (escape(&name), excerpt(&text, LONGEST));
        rows.push_str(&format!("<tr><th scope=\"row\">{name}</th><td>{text}</td></tr>\n"));
    }
}
