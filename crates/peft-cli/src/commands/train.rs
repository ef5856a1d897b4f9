//! `train`: supervised fine-tuning of an adapter.

use super::adapter;
use crate::args::{OptimizerArg, ScheduleArg, TrainArgs};
use crate::base::Base;
use crate::data::DataReader;
use crate::destination::{check_distinct, check_writable};
use crate::output::{note, usage_error};
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, Layout};
use candle_peft::hub::Part;
use candle_peft::models::{CausalLanguageModel, Checkpointing};
use candle_peft::train::metrics::Metrics;
use candle_peft::train::optim::{AdamWConfig, OptimizerConfig, SgdConfig};
use candle_peft::train::progress::Progress;
use candle_peft::train::schedule::ScheduleKind;
use candle_peft::train::sft::{self, ActivationMemory, RunOptions, SftConfig, Trainer};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    out: PathBuf,
    base: String,
    peft_type: &'static str,
    trainable_parameters: usize,
    steps: u64,
    /// The step that the run was resumed from.
    resumed_from: Option<u64>,
    /// The mean loss per token of the first and of the last step's batches.
    first_loss: Option<f64>,
    last_loss: Option<f64>,
    /// The mean loss per token of the evaluation data.
    eval_loss_before: Option<f64>,
    eval_loss_after: Option<f64>,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trained {} parameters for {} steps", self.trainable_parameters, self.steps)?;
        if let (Some(first), Some(last)) = (self.first_loss, self.last_loss) {
            writeln!(f, "training loss {first:.4} at the first step, {last:.4} at the last")?;
        }
        if let (Some(before), Some(after)) = (self.eval_loss_before, self.eval_loss_after) {
            writeln!(f, "evaluation loss {before:.4} before, {after:.4} after")?;
        }
        write!(f, "saved to {}", self.out.display())
    }
}

pub(super) fn run(args: &TrainArgs, pretrained: &Pretrained) -> Result<Report> {
    let config = match &args.adapter {
        Some(_) => None,
        None if args.method.is_given() => Some(args.method.adapter_config(pretrained)?),
        None => return Err(usage_error("nothing to train: name --adapter ADAPTER, --method METHOD or --config FILE")),
    };
    if args.warmup > args.steps {
        let (warmup, steps) = (args.warmup, args.steps);
        return Err(usage_error(format!("--warmup {warmup} is more than --steps {steps}")));
    }
    check_writable(&args.out)?;
    let adapter = adapter(args.adapter.as_deref(), pretrained)?;
    if let Some(adapter) = &adapter {
        // A resumed run needs the adapter that it started from.
        check_distinct(&args.out, adapter.path(), "--adapter")?;
    }
    let started = Instant::now();
    let base = Base::open(args.base.base.as_deref(), adapter.as_ref(), Part::Model, pretrained)?;
    let mut model = base.load(&args.base, args.seed)?;
    let reader = DataReader::new(&base, model.base().shape(), &args.data)?;
    let data = reader.read(&args.data.data)?;
    let eval_data = args.eval_data.as_deref().map(|path| reader.read(path)).transpose()?;
    if let Some(config) = config {
        model.add_adapter(DEFAULT_ADAPTER, config)?;
    }
    if let Some(adapter) = &adapter {
        pretrained.attach(&mut model, DEFAULT_ADAPTER, adapter)?;
    }
    let peft_type = model.adapter(DEFAULT_ADAPTER)?.config.method.peft_type();
    let trainable_parameters = model.param_counts()?.trainable;

    let mut trainer = Trainer::new(&mut model, &data, sft_config(args))?;
    let options = RunOptions {
        eval_data: eval_data.as_ref(),
        eval_every: args.eval_every,
        save_every: args.save_every,
        layout: if args.compact { Layout::Compact } else { Layout::Peft },
        resume: args.resume,
    };
    let mut display = Display { steps: args.steps, progress: None };
    let summary = sft::run(&mut trainer, &args.out, &options, &mut |line| display.show(line))?;
    drop(display);
    if args.resume && summary.resumed_from.is_none() {
        note(format_args!(
            "{}: there was nothing to resume, so the run started from the beginning",
            args.out.display()
        ));
    }
    Ok(Report {
        out: args.out.clone(),
        base: base.name().to_owned(),
        peft_type,
        trainable_parameters,
        steps: trainer.finished_steps(),
        resumed_from: summary.resumed_from,
        first_loss: summary.first.map(|line| line.loss),
        last_loss: summary.last.map(|line| line.loss),
        eval_loss_before: summary.eval_before.map(|line| line.loss),
        eval_loss_after: summary.eval_after.map(|line| line.loss),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn sft_config(args: &TrainArgs) -> SftConfig {
    let weight_decay = args.weight_decay;
    SftConfig {
        steps: args.steps,
        batch_size: args.data.batch_size.get(),
        grad_accum: args.grad_accum.get(),
        learning_rate: args.learning_rate,
        optimizer: match args.optimizer {
            OptimizerArg::Adamw => OptimizerConfig::AdamW(AdamWConfig { weight_decay, ..AdamWConfig::default() }),
            OptimizerArg::Sgd => OptimizerConfig::Sgd(SgdConfig { weight_decay, ..SgdConfig::default() }),
        },
        schedule: match args.schedule {
            ScheduleArg::Constant => ScheduleKind::Constant,
            ScheduleArg::Linear => ScheduleKind::Linear,
            ScheduleArg::Cosine => ScheduleKind::Cosine,
        },
        warmup_steps: args.warmup,
        grad_clip: args.grad_clip,
        shuffle: !args.no_shuffle,
        seed: args.seed,
        activation_memory: match (args.checkpointing, args.activation_memory) {
            (_, Some(bytes)) => ActivationMemory::Within(bytes),
            (Some(blocks), None) => ActivationMemory::Fixed(Checkpointing::Every(blocks.get())),
            (None, None) => ActivationMemory::default(),
        },
    }
}

/// The progress bar, from the first step on.
struct Display {
    steps: u64,
    progress: Option<Progress>,
}

impl Display {
    fn show(&mut self, line: &Metrics) {
        match line {
            Metrics::Train(line) => {
                let progress = self.progress.get_or_insert_with(|| Progress::new(self.steps, line.step - 1));
                progress.advance(line.step, line.loss, line.learning_rate);
            }
            Metrics::Eval(line) => {
                if let Some(progress) = &self.progress {
                    progress.note(&format!("step {}: evaluation loss {:.4}", line.step, line.loss));
                }
            }
            _ => {}
        }
    }
}
