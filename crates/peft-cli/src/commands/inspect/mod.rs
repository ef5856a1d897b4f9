//! `inspect`: what a folder holds, or what is wrong with it.

mod adapter;
mod model;

use crate::args::InspectArgs;
use adapter::AdapterReport;
use anyhow::{Result, bail};
use candle_peft::Pretrained;
use candle_peft::core::checkpoint::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE};
use candle_peft::hub::Part;
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

pub(super) fn run(args: &InspectArgs, pretrained: &Pretrained) -> Result<Report> {
    let folder = pretrained.folder(&args.name, Part::Any)?;
    let dir = folder.path();
    if [CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE].iter().any(|name| dir.join(name).exists()) {
        let base = args.base.as_deref().map(|base| pretrained.base(base, Part::Model)).transpose()?;
        return Ok(Report::Adapter(AdapterReport::new(dir, base.as_ref(), args, pretrained.registry())?));
    }
    if dir.join(MODEL_CONFIG_FILE).exists() {
        return Ok(Report::Model(ModelReport::new(dir)?));
    }
    bail!("{}: neither an adapter nor a model: it has no {CONFIG_FILE} and no {MODEL_CONFIG_FILE}", dir.display())
}
