//! The config of a combined adapter.

use super::source::Source;
use crate::config::LoraConfig;
use crate::init::LoraInit;
use peft_core::{AdapterConfig, ModuleNames, PEFT_VERSION, TargetSpec};

/// The first adapter's config with the rank, a scaling of 1, and the targets of all.
pub(super) fn combined<'a>(
    first: &Source<'_>,
    sources: &[Source<'_>],
    rank: usize,
    paths: impl Iterator<Item = &'a str>,
) -> AdapterConfig {
    let mut lora: LoraConfig = first.config.clone();
    (lora.r, lora.lora_alpha, lora.use_rslora) = (rank, rank as f64, false);
    lora.rank_pattern.clear();
    lora.alpha_pattern.clear();
    // How factors begin says nothing about these, and some ways to begin change the base model when a file is read.
    lora.init_lora_weights = LoraInit::Identity;
    lora.fan_in_fan_out = sources.iter().any(|source| source.config.fan_in_fan_out);
    lora.targets = targets(first, sources, paths);
    let mut config = AdapterConfig::from(lora);
    config.meta = first.adapter.config.meta.clone();
    config.meta.unknown.clear();
    config.meta.peft_version.get_or_insert_with(|| PEFT_VERSION.to_owned());
    config.meta.inference_mode = true;
    config
}

/// The union of the targets as PEFT writes it; full names where a union would select other modules, or does not exist.
fn targets<'a>(first: &Source<'_>, sources: &[Source<'_>], paths: impl Iterator<Item = &'a str>) -> TargetSpec {
    let filter = |targets: &TargetSpec| {
        (targets.exclude_modules.clone(), targets.layers_to_transform.clone(), targets.layers_pattern.clone())
    };
    let own = &first.config.targets;
    let one_filter = sources.iter().all(|source| filter(&source.config.targets) == filter(own));
    match union(sources).filter(|_| one_filter) {
        Some(names) => TargetSpec { target_modules: Some(names), ..own.clone() },
        None => TargetSpec::new(ModuleNames::list(paths)),
    }
}

/// All names of lists, or alternatives of regular expressions; none where lists and expressions meet.
fn union(sources: &[Source<'_>]) -> Option<ModuleNames> {
    let (mut names, mut patterns): (Vec<String>, Vec<String>) = (vec![], vec![]);
    for source in sources {
        match source.config.targets.target_modules.as_ref()? {
            ModuleNames::List(list) => {
                names.extend(list.iter().filter(|n| !names.contains(n)).cloned().collect::<Vec<_>>())
            }
            // Alone it is a word, inside an expression it is one.
            ModuleNames::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => return None,
            ModuleNames::Pattern(pattern) => patterns.push(format!("({pattern})")),
        }
    }
    match (names.is_empty(), patterns.is_empty()) {
        (false, true) => Some(ModuleNames::List(names)),
        (true, false) => Some(ModuleNames::Pattern(patterns.join("|"))),
        _ => None,
    }
}
