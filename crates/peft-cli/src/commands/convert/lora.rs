//! Which rank was asked for, and what became of each module.

use crate::args::ConvertArgs;
use candle_peft::lora::{ConvertedModule, Rank};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The rank that the options choose.
pub(super) fn rank(args: &ConvertArgs) -> Rank {
    match (args.rank, args.threshold) {
        (Some(rank), _) => Rank::Fixed(rank.get()),
        (None, Some(share)) => Rank::Threshold(share),
        (None, None) => Rank::Exact,
    }
}

/// Rank and error of every module: the list for programs, a summary for people.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Modules {
    #[serde(skip)]
    asked: Rank,
    modules: Vec<ConvertedModule>,
}

impl Modules {
    pub(super) fn new(asked: Rank, modules: Vec<ConvertedModule>) -> Self {
        Self { asked, modules }
    }
}

impl fmt::Display for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for module in &self.modules {
            *counts.entry(module.rank).or_default() += 1;
        }
        let ranks: Vec<String> = counts.iter().map(|(rank, count)| format!("{count} of rank {rank}")).collect();
        write!(f, "{}", ranks.join(", "))?;
        if let Rank::Fixed(asked) = self.asked
            && counts.keys().any(|rank| *rank < asked)
        {
            write!(f, " (where it is below {asked}, it is all there is)")?;
        }
        match self.modules.iter().max_by(|a, b| a.error.total_cmp(&b.error)).filter(|worst| worst.error > 0.0) {
            Some(ConvertedModule { path, error, .. }) => {
                write!(f, "\nlargest error {error:.1e} of the delta's norm, at {path}; --json lists every module")
            }
            None => write!(f, "\nexact: nothing is left out of any delta"),
        }
    }
}
