//! `combine`: several LoRA adapters as one.

use crate::args::{CombinationArg, CombineArgs};
use crate::destination::{check_distinct, check_writable};
use crate::output::usage_error;
use crate::waiting::waiting;
use anyhow::{Context, Result};
use candle_peft::Pretrained;
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::hub::Part;
use candle_peft::lora::{Combination, ConvertedModule, LoraConfig, WeightedAdapter, combine};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    adapters: Vec<Summand>,
    out: PathBuf,
    #[serde(rename = "type")]
    combination: &'static str,
    rank: usize,
    modules: usize,
    tensors: usize,
    parameters: usize,
    /// How far each module is from the sum of the deltas.
    combined: Vec<ConvertedModule>,
}

#[derive(Debug, Serialize)]
struct Summand {
    adapter: String,
    weight: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Summand { adapter, weight } in &self.adapters {
            writeln!(f, "{weight:>8} x {adapter}")?;
        }
        let Self { combination, rank, modules, parameters, out, .. } = self;
        writeln!(f, "combined by {combination}: rank {rank}, {modules} modules, {parameters} parameters")?;
        match self.combined.iter().max_by(|a, b| a.error.total_cmp(&b.error)).filter(|worst| worst.error > 0.0) {
            Some(ConvertedModule { path, error, .. }) => {
                writeln!(f, "largest distance from the sum of the deltas {error:.1e} of its norm, at {path}")?;
            }
            None => writeln!(f, "exact: the sum of the deltas")?,
        }
        write!(f, "saved to {}", out.display())
    }
}

pub(super) fn run(args: &CombineArgs, pretrained: &Pretrained) -> Result<Report> {
    let CombineArgs { adapters, weights, out, .. } = args;
    if adapters.len() != weights.len() {
        let (adapters, weights) = (adapters.len(), weights.len());
        return Err(usage_error(format!("--weight is needed once per --adapter: there are {weights} for {adapters}")));
    }
    let combination = combination(args)?;
    check_writable(out)?;
    let mut opened = vec![];
    for name in adapters {
        let folder = pretrained.folder(name, Part::Adapter)?;
        check_distinct(out, folder.path(), "--adapter")?;
        opened.push(DetachedAdapter::open(folder, pretrained.registry())?);
    }
    let weighted: Vec<WeightedAdapter<'_>> = (adapters.iter().zip(&opened).zip(weights))
        .map(|((name, adapter), weight)| WeightedAdapter::new(name, adapter, *weight))
        .collect();
    let combined = waiting("combining", || combine(&weighted, combination))?;
    combined.save(out)?;
    let config = combined.config.method.downcast_ref::<LoraConfig>().context("the combination is not a LoRA")?;
    let part = |(adapter, weight): (&String, &f64)| Summand { adapter: adapter.clone(), weight: *weight };
    Ok(Report {
        adapters: adapters.iter().zip(weights).map(part).collect(),
        out: out.clone(),
        combination: args.combination.name(),
        rank: config.r,
        modules: combined.modules.len(),
        tensors: combined.tensors.len(),
        parameters: combined.tensors.values().map(|tensor| tensor.elem_count()).sum(),
        combined: combined.modules,
    })
}

/// What is combined how; a rank that would be ignored is a mistake.
fn combination(args: &CombineArgs) -> Result<Combination> {
    let rank = args.rank.map(usize::from);
    match (args.combination, rank) {
        (CombinationArg::Svd, rank) => Ok(Combination::Svd { rank, clamp: None }),
        (other, Some(rank)) => Err(usage_error(format!(
            "--rank {rank}: --type {} has the rank of its adapters; use --type svd",
            other.name()
        ))),
        (CombinationArg::Linear, None) => Ok(Combination::Linear),
        (CombinationArg::Cat, None) => Ok(Combination::Cat),
    }
}
