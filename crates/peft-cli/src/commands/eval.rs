//! `eval`: the loss on a data file, or how often a task is solved.

use super::adapter;
use crate::args::EvalArgs;
use crate::base::Base;
use crate::data::DataReader;
use crate::output::{Output, usage_error};
use crate::task::{TaskReader, shares};
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::core::checkpoint::DEFAULT_ADAPTER;
use candle_peft::hub::Part;
use candle_peft::models::CausalLanguageModel;
use candle_peft::train::accuracy::accuracy;
use candle_peft::train::eval::{Evaluation, evaluate};
use candle_peft::train::metrics::AccuracyMetrics;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
struct LossReport {
    base: String,
    adapter: Option<String>,
    data: PathBuf,
    #[serde(flatten)]
    evaluation: Evaluation,
    /// Lines that `--max-length` left nothing of.
    lines_without_loss: Vec<usize>,
}

impl fmt::Display for LossReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Evaluation { loss, perplexity, tokens, ref rows, .. } = self.evaluation;
        writeln!(f, "loss       {loss:.6}")?;
        writeln!(f, "perplexity {perplexity:.4}")?;
        write!(f, "tokens     {tokens} in {} rows", rows.len())
    }
}

#[derive(Debug, Serialize)]
struct TaskReport {
    base: String,
    adapter: Option<String>,
    task: String,
    #[serde(flatten)]
    accuracy: AccuracyMetrics,
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shares(&self.accuracy))
    }
}

pub(super) fn run(args: &EvalArgs, pretrained: &Pretrained, output: Output) -> Result<()> {
    let task = args.task.open(args.seed)?;
    let adapter = adapter(args.adapter.as_deref(), pretrained)?;
    let base = Base::open(args.base.base.as_deref(), adapter.as_ref(), Part::Model, pretrained)?;
    let mut model = base.load(&args.base, 0)?;
    let data = match &args.data.data {
        Some(path) => Some((path, DataReader::new(&base, model.base().shape(), &args.data)?.read(path)?)),
        None => None,
    };
    if let Some(adapter) = &adapter {
        pretrained.attach(&mut model, DEFAULT_ADAPTER, adapter)?;
    }
    let (name, adapter) = (base.name().to_owned(), args.adapter.clone());
    match (data, task) {
        (Some((path, data)), _) => output.report(&LossReport {
            base: name,
            adapter,
            data: path.clone(),
            evaluation: evaluate(&mut model, &data, args.data.batch_size.get())?,
            lines_without_loss: data.without_targets().to_vec(),
        }),
        (None, Some(task)) => {
            let options = args.answers.options(args.seed);
            let options = options.ok_or_else(|| usage_error("--eval-problems 0 leaves nothing to measure"))?;
            let reader = TaskReader::new(&base)?;
            let accuracy = accuracy(&mut model, &task, reader.encoder(), &options)?.metrics(0);
            output.report(&TaskReport { base: name, adapter, task: task.name().to_owned(), accuracy })
        }
        (None, None) => Err(usage_error("nothing to measure: name --data FILE or --task TASK")),
    }
}
