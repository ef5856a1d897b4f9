//! From what a config says to what it means on one model.

use super::matcher::is_suffix;
use super::{Matcher, ModuleNames, TargetSpec};
use crate::{BoxedMethod, Error, HostSpec, Result};
use std::collections::BTreeSet;

/// From this many names on, PEFT writes suffixes instead of full names.
const CONDENSE_FROM: usize = 20;

/// Replaces "the usual ones" and `all-linear` by names of modules of this model, in as few suffixes as tell targets from the rest.
///
/// The result is what a checkpoint's config says.
pub(crate) fn resolve(
    method: &BoxedMethod,
    model_type: Option<&str>,
    hosts: &[(String, HostSpec)],
) -> Result<TargetSpec> {
    let mut resolved = method.targets().clone();
    if resolved.target_modules.is_none() {
        let usual = model_type.and_then(|t| method.default_targets(t)).ok_or_else(|| {
            let model = model_type.map_or("this model".to_owned(), |t| format!("model type `{t}`"));
            Error::config(format!("`target_modules` must be set: {model} has no usual targets"))
        })?;
        resolved.target_modules = Some(usual);
    }
    if resolved.target_modules.as_ref().is_some_and(ModuleNames::is_all_linear) {
        let matcher = Matcher::new(&resolved)?;
        let mut names = vec![];
        for (path, host) in hosts {
            if matcher.is_target(path, host)? {
                names.push(path.clone());
            }
        }
        resolved.target_modules = Some(ModuleNames::List(names));
    }
    if let Some(ModuleNames::List(names)) = &mut resolved.target_modules
        && names.len() >= CONDENSE_FROM
    {
        *names = condense(names, hosts);
    }
    Ok(resolved)
}

/// The shortest suffixes that cover every target and end no other module's path.
fn condense(targets: &[String], hosts: &[(String, HostSpec)]) -> Vec<String> {
    let modules = hosts.iter().flat_map(|(path, _)| ends(path).map(|end| &path[..end]));
    let is_named = |module: &str| targets.iter().any(|target| is_suffix(module, target));
    let others: BTreeSet<&str> = modules.filter(|m| !is_named(m)).flat_map(suffixes).collect();
    let mut kept: Vec<String> = vec![];
    for target in targets {
        if kept.iter().any(|k| is_suffix(target, k)) {
            continue;
        }
        let mut candidates = suffixes(target).collect::<Vec<_>>();
        candidates.reverse();
        if let Some(shortest) = candidates.into_iter().find(|s| !others.contains(s)) {
            kept.push(shortest.to_owned());
        }
    }
    kept
}

/// Where the paths of a module and of the modules around it end.
fn ends(path: &str) -> impl Iterator<Item = usize> {
    path.match_indices('.').map(|(i, _)| i).chain([path.len()])
}

/// The path and everything after each of its dots, longest first.
fn suffixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(path.match_indices('.').map(|(i, _)| &path[i + 1..]))
}

/// The names of modules most like `wanted`, and all distinct names, for an error message.
pub(crate) fn nearest(wanted: &str, hosts: &[(String, HostSpec)]) -> (Option<String>, String) {
    let mut names: Vec<&str> = vec![];
    for (path, _) in hosts {
        let name = path.rsplit('.').next().unwrap_or(path);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let leaf = wanted.rsplit('.').next().unwrap_or(wanted);
    let mut scored: Vec<(f64, &str)> =
        names.iter().map(|n| (strsim::jaro_winkler(leaf, n), *n)).filter(|(s, _)| *s > 0.75).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near = scored.iter().take(3).map(|(_, n)| format!("`{n}`")).collect::<Vec<_>>().join(" or ");
    ((!near.is_empty()).then_some(near), names.join(", "))
}
