//! PEFT's test of one module path against a config.

use super::{ModuleNames, TargetSpec};
use crate::{Error, HostKind, HostRole, HostSpec, Result};
use fancy_regex::Regex;

/// A [`TargetSpec`] compiled for matching.
#[derive(Debug)]
pub struct Matcher {
    targets: Names,
    excluded: Names,
    saved: Vec<(String, Regex)>,
    layers: Option<LayerFilter>,
}

#[derive(Debug)]
enum Names {
    Nothing,
    AllLinear,
    Regex(Regex),
    List(Vec<String>),
}

#[derive(Debug)]
struct LayerFilter {
    indices: Vec<usize>,
    patterns: Vec<Regex>,
}

/// Whether `path` is `entry`, or ends with it after a dot.
pub(super) fn is_suffix(path: &str, entry: &str) -> bool {
    path == entry || path.strip_suffix(entry).is_some_and(|head| head.ends_with('.'))
}

/// Whether an entry of `modules_to_save` takes the module at `path`, or a module around it, by plain suffix.
pub(crate) fn saves(entry: &str, path: &str) -> bool {
    let ends = path.match_indices('.').map(|(i, _)| i).chain([path.len()]);
    ends.into_iter().any(|end| path[..end].ends_with(entry))
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| Error::Pattern { pattern: pattern.to_owned(), message: e.to_string() })
}

/// A pattern that must match the whole path, as Python's `re.fullmatch`.
fn full(pattern: &str) -> Result<Regex> {
    regex(&format!("^(?:{pattern})$")).map_err(|e| {
        if let Error::Pattern { message, .. } = e { Error::Pattern { pattern: pattern.into(), message } } else { e }
    })
}

/// A match that runs out of its backtracking budget counts as an error, not as "no match".
fn is_match(regex: &Regex, path: &str) -> Result<bool> {
    regex.is_match(path).map_err(|e| Error::Pattern { pattern: regex.as_str().to_owned(), message: e.to_string() })
}

impl Names {
    fn new(names: Option<&ModuleNames>) -> Result<Self> {
        Ok(match names {
            None => Self::Nothing,
            Some(names) if names.is_all_linear() => Self::AllLinear,
            Some(ModuleNames::Pattern(pattern)) => Self::Regex(full(pattern)?),
            Some(ModuleNames::List(names)) => Self::List(names.clone()),
        })
    }
}

impl Matcher {
    /// Compiles a spec.
    ///
    /// # Errors
    /// [`Error::Pattern`] when a regular expression does not compile.
    pub fn new(spec: &TargetSpec) -> Result<Self> {
        let saved = spec.modules_to_save.iter().flatten();
        let layers = match &spec.layers_to_transform {
            Some(indices) if spec.filters_layers() => {
                let patterns = spec.layers_pattern.as_ref().map(|p| p.as_slice()).unwrap_or_default();
                let mut patterns: Vec<Regex> = patterns
                    .iter()
                    .filter(|p| !p.is_empty())
                    .map(|p| regex(&format!(r"^(?:|.*?\.){p}\.(\d+)\.")))
                    .collect::<Result<_>>()?;
                if patterns.is_empty() {
                    patterns.push(regex(r"^.*?\.[^.]*\.(\d+)\.")?);
                }
                Some(LayerFilter { indices: indices.as_slice().to_vec(), patterns })
            }
            _ => None,
        };
        Ok(Self {
            targets: Names::new(spec.target_modules.as_ref())?,
            excluded: Names::new(spec.exclude_modules.as_ref())?,
            saved: saved
                .map(|n| Ok((n.clone(), regex(&format!(r"^(?:|.*\.){n}(?:$|\..*)"))?)))
                .collect::<Result<_>>()?,
            layers,
        })
    }

    /// Whether the module at `path` is a target.
    ///
    /// Exact names in a list bypass the layer filter, as in PEFT; so does a regular expression.
    pub fn is_target(&self, path: &str, spec: &HostSpec) -> Result<bool> {
        if self.is_excluded(path)? {
            return Ok(false);
        }
        for (_, regex) in &self.saved {
            if is_match(regex, path)? {
                return Ok(false);
            }
        }
        match &self.targets {
            Names::Nothing => Ok(false),
            Names::AllLinear => {
                Ok(spec.kind == HostKind::Linear && spec.role != HostRole::OutputHead && self.in_layers(path)?)
            }
            Names::Regex(regex) => is_match(regex, path),
            Names::List(names) if names.iter().any(|n| n == path) => Ok(true),
            Names::List(names) => Ok(names.iter().any(|n| is_suffix(path, n)) && self.in_layers(path)?),
        }
    }

    fn is_excluded(&self, path: &str) -> Result<bool> {
        match &self.excluded {
            Names::Nothing | Names::AllLinear => Ok(false),
            Names::Regex(regex) => is_match(regex, path),
            Names::List(names) => Ok(names.iter().any(|n| is_suffix(path, n))),
        }
    }

    /// Whether the module at `path`, or a module around it, is trained and saved as a whole.
    ///
    /// PEFT compares plain suffixes here, without regard to dots: `head` takes `lm_head`.
    pub fn is_saved(&self, path: &str) -> bool {
        self.saved.iter().any(|(name, _)| saves(name, path))
    }

    fn in_layers(&self, path: &str) -> Result<bool> {
        let Some(filter) = &self.layers else { return Ok(true) };
        for pattern in &filter.patterns {
            let captures = pattern
                .captures(path)
                .map_err(|e| Error::Pattern { pattern: pattern.as_str().to_owned(), message: e.to_string() })?;
            if let Some(index) = captures.and_then(|c| c.get(1)).and_then(|m| m.as_str().parse::<usize>().ok()) {
                return Ok(filter.indices.contains(&index));
            }
        }
        Ok(false)
    }
}
