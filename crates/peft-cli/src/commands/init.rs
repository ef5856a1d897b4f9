//! `init`: an untrained adapter.

use crate::args::InitArgs;
use crate::base::Base;
use crate::destination::check_writable;
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::core::ParamCounts;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, Layout};
use candle_peft::hub::Part;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    out: PathBuf,
    base: String,
    peft_type: &'static str,
    modules: Vec<String>,
    trainable_parameters: usize,
    total_parameters: usize,
    #[serde(skip)]
    counts: ParamCounts,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {} modules of {}", self.peft_type, self.modules.len(), self.base)?;
        writeln!(f, "{}", self.counts)?;
        write!(f, "saved to {}", self.out.display())
    }
}

pub(super) fn run(args: &InitArgs, pretrained: &Pretrained) -> Result<Report> {
    let config = args.method.adapter_config(pretrained)?;
    check_writable(&args.out)?;
    let base = Base::open(args.base.base.as_deref(), None, Part::Model, pretrained)?;
    let mut model = base.load(&args.base, args.seed)?;
    let adapter = model.add_adapter(DEFAULT_ADAPTER, config)?;
    let peft_type = adapter.config.method.peft_type();
    let modules = adapter.sites.iter().map(|(path, _)| path.clone()).collect();
    let layout = if args.compact { Layout::Compact } else { Layout::Peft };
    model.save_adapter_as(DEFAULT_ADAPTER, &args.out, layout)?;
    let counts = model.param_counts()?;
    Ok(Report {
        out: args.out.clone(),
        base: base.name().to_owned(),
        peft_type,
        modules,
        trainable_parameters: counts.trainable,
        total_parameters: counts.total,
        counts,
    })
}
