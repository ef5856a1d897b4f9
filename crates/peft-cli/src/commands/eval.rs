//! `eval`: the loss on a data file.

use super::adapter;
use crate::args::EvalArgs;
use crate::base::Base;
use crate::data::DataReader;
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::core::checkpoint::DEFAULT_ADAPTER;
use candle_peft::hub::Part;
use candle_peft::models::CausalLanguageModel;
use candle_peft::train::eval::{Evaluation, evaluate};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    base: String,
    adapter: Option<String>,
    data: PathBuf,
    #[serde(flatten)]
    evaluation: Evaluation,
    /// Lines that `--max-length` left nothing of.
    lines_without_loss: Vec<usize>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Evaluation { loss, perplexity, tokens, ref rows, .. } = self.evaluation;
        writeln!(f, "loss       {loss:.6}")?;
        writeln!(f, "perplexity {perplexity:.4}")?;
        write!(f, "tokens     {tokens} in {} rows", rows.len())
    }
}

pub(super) fn run(args: &EvalArgs, pretrained: &Pretrained) -> Result<Report> {
    let adapter = adapter(args.adapter.as_deref(), pretrained)?;
    let base = Base::open(args.base.base.as_deref(), adapter.as_ref(), Part::Model, pretrained)?;
    let mut model = base.load(&args.base, 0)?;
    let data = DataReader::new(&base, model.base().shape(), &args.data)?.read(&args.data.data)?;
    if let Some(adapter) = &adapter {
        pretrained.attach(&mut model, DEFAULT_ADAPTER, adapter)?;
    }
    Ok(Report {
        base: base.name().to_owned(),
        adapter: args.adapter.clone(),
        data: args.data.data.clone(),
        evaluation: evaluate(&mut model, &data, args.data.batch_size.get())?,
        lines_without_loss: data.without_targets().to_vec(),
    })
}
