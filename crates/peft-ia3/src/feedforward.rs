//! `feedforward_modules`: which of the adapted modules have their inputs scaled.

use peft_core::{HostKind, HostSpec, Matcher, ModuleNames, Result, Site, TargetSpec};

/// The value of the field, compiled.
#[derive(Debug)]
pub(crate) enum Feedforward<'a> {
    /// Plain suffixes of paths, without regard to dots.
    Suffixes(&'a [String]),
    /// An expression that must match a whole path.
    Expression(Box<Matcher>),
}

impl<'a> Feedforward<'a> {
    /// # Errors
    /// When a regular expression does not compile.
    pub(crate) fn new(names: &'a ModuleNames) -> Result<Self> {
        Ok(match names {
            ModuleNames::List(names) => Self::Suffixes(names),
            // No wildcard here, but an expression that no path matches.
            ModuleNames::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => Self::Suffixes(&[]),
            expression => Self::Expression(Box::new(Matcher::new(&TargetSpec::new(expression.clone()))?)),
        })
    }

    /// Whether the module at `path` has its input scaled.
    pub(crate) fn has(&self, path: &str) -> Result<bool> {
        match self {
            Self::Suffixes(names) => Ok(names.iter().any(|name| path.ends_with(name.as_str()))),
            Self::Expression(matcher) => matcher.is_target(path, &HostSpec::new(HostKind::Linear, 1, 1)),
        }
    }
}

/// The modules that a list means, in names of `targets`, so that PEFT, which asks for a subset, loads the config.
///
/// The usual names of a model type need not be among those that were chosen, and `all-linear` becomes a list of full names. PEFT
/// itself writes such configs and cannot read them. Modules that no name of `targets` means alone are added to it by their full
/// names: they are targets anyhow.
pub(crate) fn among_targets(names: &[String], targets: &mut Vec<String>, sites: &[Site]) -> Vec<String> {
    let ends = |name: &String, site: &Site| site.path.ends_with(name.as_str());
    let (scaled, others): (Vec<&Site>, Vec<&Site>) =
        sites.iter().partition(|site| names.iter().any(|name| ends(name, site)));
    let mut chosen: Vec<String> = targets.clone();
    chosen.retain(|name| scaled.iter().any(|s| ends(name, s)) && !others.iter().any(|s| ends(name, s)));
    let left_out: Vec<&Site> = scaled.into_iter().filter(|site| !chosen.iter().any(|name| ends(name, site))).collect();
    for site in left_out {
        targets.push(site.path.clone());
        chosen.push(site.path.clone());
    }
    chosen
}
