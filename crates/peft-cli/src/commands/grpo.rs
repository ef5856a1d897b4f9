//! `grpo`: reinforcement learning on a task with verifiable rewards.

use super::training::Starting;
use crate::args::GrpoArgs;
use crate::output::usage_error;
use crate::task::{TaskReader, shares};
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::train::grpo::{self, GrpoConfig, RunOptions, Trainer};
use candle_peft::train::metrics::{AccuracyMetrics, GrpoMetrics, Metrics};
use candle_peft::train::progress::Progress;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    out: PathBuf,
    base: String,
    task: String,
    peft_type: &'static str,
    trainable_parameters: usize,
    steps: u64,
    /// The step that the run was resumed from.
    resumed_from: Option<u64>,
    first: Option<GrpoMetrics>,
    last: Option<GrpoMetrics>,
    /// Answers to held-out problems.
    before: Option<AccuracyMetrics>,
    after: Option<AccuracyMetrics>,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trainable_parameters, steps, task, .. } = self;
        writeln!(f, "trained {trainable_parameters} parameters for {steps} steps on {task} in {:.0} s", self.seconds)?;
        if let (Some(first), Some(last)) = (&self.first, &self.last) {
            writeln!(f, "mean reward {:.3} at the first step, {:.3} at the last", first.reward, last.reward)?;
        }
        for (when, measured) in [("before", &self.before), ("after", &self.after)] {
            if let Some(measured) = measured {
                writeln!(f, "{when:6}  {}", shares(measured))?;
            }
        }
        write!(f, "saved to {}", self.out.display())
    }
}

pub(super) fn run(args: &GrpoArgs, pretrained: &Pretrained) -> Result<Report> {
    let started = Instant::now();
    let task = args.task.open(args.training.seed)?;
    let task = task.ok_or_else(|| usage_error("nothing to solve: name --task sums, arithmetic, gsm8k or a file"))?;
    let Starting { base, mut model, adapter } = Starting::open(&args.training, pretrained)?;
    let reader = TaskReader::new(&base)?;
    let trained = adapter.attach(&mut model, pretrained)?;
    let config = grpo_config(args);
    let rewards = args.reward.rewards(&task, config.max_new_tokens.unwrap_or_else(|| task.max_new_tokens()))?;
    let mut trainer = Trainer::new(&mut model, &task, reader.encoder(), config)?;
    if let Some(rewards) = rewards {
        trainer = trainer.with_rewards(rewards)?;
    }
    let options = RunOptions {
        accuracy: args.answers.options(args.training.seed),
        eval_every: args.eval_every,
        save_every: args.save_every,
        layout: args.training.layout(),
        resume: args.training.resume,
    };
    let mut display = Display { steps: args.training.steps, progress: None };
    let summary = grpo::run(&mut trainer, &args.training.out, &options, &mut |line| display.show(line))?;
    drop(display);
    args.training.note_fresh_start(summary.resumed_from);
    Ok(Report {
        out: args.training.out.clone(),
        base: base.name().to_owned(),
        task: task.name().to_owned(),
        peft_type: trained.peft_type,
        trainable_parameters: trained.parameters,
        steps: trainer.finished_steps(),
        resumed_from: summary.resumed_from,
        first: summary.first,
        last: summary.last,
        before: summary.before,
        after: summary.after,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn grpo_config(args: &GrpoArgs) -> GrpoConfig {
    let (training, rollouts, objective) = (&args.training, &args.rollouts, &args.objective);
    GrpoConfig {
        steps: training.steps,
        prompts_per_step: rollouts.prompts_per_step.get(),
        group_size: rollouts.group_size,
        max_new_tokens: args.answers.max_new_tokens.map(|tokens| tokens.get()),
        temperature: rollouts.temperature,
        top_k: rollouts.top_k.map(|k| k.get()),
        top_p: rollouts.top_p,
        min_p: rollouts.min_p,
        rollout_rows: args.answers.rollout_rows.get(),
        rollout_weights: rollouts.rollouts.into(),
        loss_type: objective.loss_type.into(),
        scale_rewards: objective.scale_rewards.into(),
        epsilon: objective.epsilon,
        epsilon_high: objective.epsilon_high,
        beta: objective.beta,
        num_iterations: objective.num_iterations.get(),
        mini_batches: objective.mini_batches.get(),
        mask_truncated_completions: objective.mask_truncated_completions,
        importance_cap: objective.importance_cap,
        learning_rate: training.learning_rate,
        optimizer: training.optimizer_config(),
        schedule: args.schedule.into(),
        warmup_steps: training.warmup,
        grad_clip: Some(args.grad_clip),
        micro_batch_tokens: args.micro_batch_tokens.get(),
        activation_memory: training.activation_memory(),
        seed: training.seed,
        log_prompts: args.log_prompts,
        ..GrpoConfig::default()
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
            Metrics::Grpo(line) => {
                let progress = self.progress.get_or_insert_with(|| Progress::new(self.steps, line.step - 1));
                progress.advance_with(line.step, &format!("reward {:.3} strict {:.3}", line.reward, line.strict));
            }
            Metrics::Accuracy(line) => {
                let text = format!("step {}: {}", line.step, shares(line));
                self.progress.get_or_insert_with(|| Progress::new(self.steps, line.step)).note(&text);
            }
            _ => {}
        }
    }
}
