//! `train`: supervised fine-tuning of an adapter.

use super::training::Starting;
use crate::args::TrainArgs;
use crate::data::DataReader;
use crate::output::usage_error;
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::models::CausalLanguageModel;
use candle_peft::train::metrics::Metrics;
use candle_peft::train::progress::Progress;
use candle_peft::train::sft::{self, RunOptions, SftConfig, Trainer};
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
    let started = Instant::now();
    let Starting { base, mut model, adapter } = Starting::open(&args.training, pretrained)?;
    let reader = DataReader::new(&base, model.base().shape(), &args.data)?;
    let data = match (&args.data.data, args.task.open(args.training.seed)?) {
        (Some(path), _) => reader.read(path)?,
        (None, Some(task)) => {
            // As many problems as the run sees, each once.
            let batch = (args.data.batch_size.get() * args.grad_accum.get()) as u64;
            reader.demonstrations(&task, args.training.steps.saturating_mul(batch))?
        }
        (None, None) => return Err(usage_error("nothing to learn from: name --data FILE or --task TASK")),
    };
    let eval_data = args.eval_data.as_deref().map(|path| reader.read(path)).transpose()?;
    let trained = adapter.attach(&mut model, pretrained)?;

    let mut trainer = Trainer::new(&mut model, &data, sft_config(args))?;
    let options = RunOptions {
        eval_data: eval_data.as_ref(),
        eval_every: args.eval_every,
        save_every: args.save_every,
        layout: args.training.layout(),
        resume: args.training.resume,
    };
    let mut display = Display { steps: args.training.steps, progress: None };
    let summary = sft::run(&mut trainer, &args.training.out, &options, &mut |line| display.show(line))?;
    drop(display);
    args.training.note_fresh_start(summary.resumed_from);
    Ok(Report {
        out: args.training.out.clone(),
        base: base.name().to_owned(),
        peft_type: trained.peft_type,
        trainable_parameters: trained.parameters,
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
    SftConfig {
        steps: args.training.steps,
        batch_size: args.data.batch_size.get(),
        grad_accum: args.grad_accum.get(),
        learning_rate: args.training.learning_rate,
        optimizer: args.training.optimizer_config(),
        schedule: args.schedule.into(),
        warmup_steps: args.training.warmup,
        grad_clip: args.grad_clip,
        shuffle: !args.no_shuffle,
        seed: args.training.seed,
        activation_memory: args.training.activation_memory(),
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
