//! `rank_pattern` and `alpha_pattern`: values for modules whose name a regular expression ends.

use fancy_regex::Regex;
use indexmap::IndexMap;
use peft_core::{Error, Result, Site};

/// Values by pattern, compiled, in the order of the file.
#[derive(Debug)]
pub(crate) struct Patterns<'a, T> {
    entries: Vec<(&'a str, Regex, T)>,
}

impl<'a, T: Copy> Patterns<'a, T> {
    /// Compiles the patterns of a config; each must begin at a dot or at the start of a module's path, and reach its end.
    pub(crate) fn new(map: &'a IndexMap<String, T>) -> Result<Self> {
        let compile = |(key, value): (&'a String, &T)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$"));
            let regex = regex.map_err(|e| Error::Pattern { pattern: key.clone(), message: e.to_string() })?;
            Ok((key.as_str(), regex, *value))
        };
        Ok(Self { entries: map.iter().map(compile).collect::<Result<_>>()? })
    }

    /// The value of the first pattern that fits a module's path.
    pub(crate) fn find(&self, path: &str) -> Option<T> {
        self.entries.iter().find(|(_, regex, _)| regex.is_match(path).unwrap_or(false)).map(|(_, _, value)| *value)
    }

    /// Refuses a pattern that fits no site: what it was meant for would silently have another value.
    pub(crate) fn check_used(&self, field: &str, sites: &[Site]) -> Result<()> {
        let idle = |regex: &Regex| !sites.iter().any(|site| regex.is_match(&site.path).unwrap_or(false));
        match self.entries.iter().find(|(_, regex, _)| idle(regex)) {
            None => Ok(()),
            Some((key, ..)) => Err(Error::config(format!(
                "`{field}` has `{key}`, which fits none of the {} adapted modules, such as `{}`",
                sites.len(),
                sites.first().map(|site| site.path.as_str()).unwrap_or_default(),
            ))),
        }
    }
}
