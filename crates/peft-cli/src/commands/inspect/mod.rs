//! `inspect`: what a folder holds, or what is wrong with it.

mod adapter;
mod model;

use crate::args::InspectArgs;
use adapter::AdapterReport;
use anyhow::{Result, bail};
use candle_peft::Registry;
use candle_peft::core::checkpoint::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE};
use model::ModelReport;
use serde::Serialize;
use std::fmt;

const MODEL_CONFIG_FILE: &str = "config.json";

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Report {
    Adapter(AdapterReport),
    Model(ModelReport),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adapter(report) => report.fmt(f),
            Self::Model(report) => report.fmt(f),
        }
    }
}

pub(super) fn run(args: &InspectArgs, registry: &Registry) -> Result<Report> {
    let dir = &args.dir;
    if !dir.is_dir() {
        bail!("{}: {}", dir.display(), if dir.exists() { "not a folder" } else { "no such folder" });
    }
    if [CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE].iter().any(|name| dir.join(name).exists()) {
        return Ok(Report::Adapter(AdapterReport::new(dir, args.base.as_deref(), registry)?));
    }
    if dir.join(MODEL_CONFIG_FILE).exists() {
        return Ok(Report::Model(ModelReport::new(dir)?));
    }
    bail!("{}: neither an adapter nor a model: it has no {CONFIG_FILE} and no {MODEL_CONFIG_FILE}", dir.display())
}
