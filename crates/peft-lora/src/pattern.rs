//! `rank_pattern` and `alpha_pattern`: values for modules whose name a regular expression ends.

use fancy_regex::Regex;
use peft_core::{Error, Result};
use std::collections::BTreeMap;

/// Values by pattern, compiled.
#[derive(Debug)]
pub(crate) struct Patterns<T> {
    entries: Vec<(Regex, T)>,
}

impl<T: Copy> Patterns<T> {
    /// Compiles the patterns of a config; each must begin at a dot or at the start of a module's path, and reach its end.
    pub(crate) fn new(map: &BTreeMap<String, T>) -> Result<Self> {
        let compile = |(key, value): (&String, &T)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$"));
            let regex = regex.map_err(|e| Error::Pattern { pattern: key.clone(), message: e.to_string() })?;
            Ok((regex, *value))
        };
        Ok(Self { entries: map.iter().map(compile).collect::<Result<_>>()? })
    }

    /// The value of the first pattern that fits a module's path.
    pub(crate) fn find(&self, path: &str) -> Option<T> {
        self.entries.iter().find(|(regex, _)| regex.is_match(path).unwrap_or(false)).map(|(_, value)| *value)
    }
}
