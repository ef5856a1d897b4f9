//! How often a model solves a task.

use crate::data::Encoder;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerationConfig, Request};
use crate::metrics::AccuracyMetrics;
use crate::task::Task;
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;
use std::time::Instant;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccuracyOptions {
    /// The first so many held-out problems; all of them if `None`.
    pub problems: Option<usize>,
    /// Completions of each problem.
    pub samples: usize,
    /// The temperature they are drawn at; 0 takes the likeliest tokens.
    pub temperature: f64,
    /// The most tokens of a completion; what the task suggests if it is `None`.
    pub max_new_tokens: Option<usize>,
    /// The most completions that are generated side by side.
    pub rows: usize,
    /// The seed of the drawing.
    pub seed: u64,
}

/// One greedy completion of each problem.
impl Default for AccuracyOptions {
    fn default() -> Self {
        Self { problems: None, samples: 1, temperature: 0.0, max_new_tokens: None, rows: 64, seed: 0 }
    }
}

/// The answers to a task's held-out problems.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Accuracy {
    /// The temperature that answers were drawn at.
    pub temperature: f64,
    /// Completions of each problem.
    pub samples: usize,
    /// Problem by problem.
    pub answers: Vec<Answers>,
    /// Wall-clock time.
    pub seconds: f64,
}

/// The answers to one problem.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answers {
    /// How many are right by the strict reading.
    pub strict: usize,
    /// How many are right by the flexible reading.
    pub flexible: usize,
    /// How many were cut off.
    pub truncated: usize,
    /// Tokens of all answers.
    pub tokens: usize,
    /// The first answer.
    pub text: String,
}

/// Lets a model answer held-out problems. The model is left in inference mode.
///
/// # Errors
/// When an option is out of range, the task has no held-out problems, the encoder no tokenizer, or the model fails.
pub fn accuracy<M: CausalLanguageModel>(
    model: &mut PeftModel<M>,
    task: &Task,
    encoder: Encoder<'_>,
    options: &AccuracyOptions,
) -> Result<Accuracy> {
    let started = Instant::now();
    let all = task.eval_problems();
    let problems = &all[..options.problems.map_or(all.len(), |problems| problems.min(all.len()))];
    if problems.is_empty() {
        return Err(Error::option("task", format!("{} has no held-out problems to measure with", task.name())));
    }
    if options.samples == 0 {
        return Err(Error::option("samples", "it must be at least 1"));
    }
    let generation = GenerationConfig {
        max_new_tokens: options.max_new_tokens.unwrap_or_else(|| task.max_new_tokens()),
        temperature: options.temperature,
        seed: options.seed,
        stop_ids: encoder.stop_ids(model.base())?,
        max_rows: options.rows,
        ..GenerationConfig::default()
    };
    let mut generator = encoder.generator(generation, task.stop_strings())?;
    let prompts = problems.iter().map(|problem| encoder.prompt_ids(&problem.prompt)).collect::<Result<Vec<_>>>()?;
    let requests = prompts.iter().zip(0..).map(|(prompt, stream)| Request { prompt, samples: options.samples, stream });
    model.eval()?;
    let generations = generator.generate(model.base(), &requests.collect::<Vec<_>>())?;
    let mut answers = Vec::with_capacity(problems.len());
    for (problem, generations) in problems.iter().zip(generations) {
        let mut of_problem = Answers { strict: 0, flexible: 0, truncated: 0, tokens: 0, text: String::new() };
        for (sample, generation) in generations.iter().enumerate() {
            let text = encoder.completion_text(generation, task.stop_strings())?;
            let reading = task.read(problem, &text);
            of_problem.strict += usize::from(reading.strict);
            of_problem.flexible += usize::from(reading.flexible);
            of_problem.truncated += usize::from(generation.finish_reason != FinishReason::Stop);
            of_problem.tokens += generation.ids.len();
            if sample == 0 {
                of_problem.text = text;
            }
        }
        answers.push(of_problem);
    }
    let AccuracyOptions { temperature, samples, .. } = *options;
    Ok(Accuracy { temperature, samples, answers, seconds: started.elapsed().as_secs_f64() })
}

impl Accuracy {
    /// The share of answers that are right by the strict reading.
    pub fn strict(&self) -> f64 {
        self.mean(|answers| answers.strict)
    }

    /// The share of answers that are right by the flexible reading.
    pub fn flexible(&self) -> f64 {
        self.mean(|answers| answers.flexible)
    }

    /// The numbers for a file of metrics, after `step` steps.
    pub fn metrics(&self, step: u64) -> AccuracyMetrics {
        let interval = |right: &dyn Fn(&Answers) -> usize| {
            let shares = self.answers.iter().map(|answers| right(answers) as f64 / self.samples as f64);
            wilson_interval(&shares.collect::<Vec<_>>())
        };
        AccuracyMetrics {
            step,
            problems: self.answers.len() as u64,
            samples: self.samples as u64,
            temperature: self.temperature,
            strict: self.strict(),
            strict_interval: interval(&|answers| answers.strict),
            flexible: self.flexible(),
            flexible_interval: interval(&|answers| answers.flexible),
            completion_tokens: self.mean(|answers| answers.tokens),
            truncated: self.mean(|answers| answers.truncated),
            seconds: self.seconds,
        }
    }

    fn mean(&self, of: impl Fn(&Answers) -> usize) -> f64 {
        let sum: usize = self.answers.iter().map(of).sum();
        sum as f64 / (self.answers.len() * self.samples).max(1) as f64
    }
}

/// The 95 % interval of a share over problems (Wilson 1927), from each problem's share of right answers.
///
/// With several answers to a problem, problems count as many times as makes the variance of their mean that of the sample: answers to
/// one problem are not independent.
pub fn wilson_interval(shares: &[f64]) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    let n = shares.len() as f64;
    if shares.len() < 2 {
        return [0.0, 1.0];
    }
    let p = shares.iter().sum::<f64>() / n;
    let variance = shares.iter().map(|share| (share - p).powi(2)).sum::<f64>() / (n - 1.0) / n;
    let n = if variance > 0.0 { (p * (1.0 - p) / variance).max(n) } else { n };
    let (centre, half) = (p + Z * Z / (2.0 * n), Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt());
    let scale = 1.0 + Z * Z / n;
    [((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0)]
}
