//! A whole run in an output folder.

use super::Trainer;
use crate::accuracy::AccuracyOptions;
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::metrics::{AccuracyMetrics, GrpoMetrics, Metrics};
use crate::run::{self, METRICS_FILE, Pace, Step, Training};
use crate::state::TrainerState;
use peft_core::PeftModel;
use peft_core::checkpoint::Layout;
use peft_models::CausalLanguageModel;
use std::path::Path;

/// What [`run()`] does beside taking steps.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// What is measured before the first step and after the last one.
    pub accuracy: Option<AccuracyOptions>,
    /// Steps from one measurement to the next; only at both ends where there is none.
    pub eval_every: Option<u64>,
    /// Steps from one saved state to the next.
    pub save_every: u64,
    /// How the adapter is laid out.
    pub layout: Layout,
    /// Goes on from the state in the output folder; where there is none, the run starts from the beginning.
    pub resume: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        let accuracy = Some(AccuracyOptions::default());
        Self { accuracy, eval_every: None, save_every: 10, layout: Layout::Peft, resume: false }
    }
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RunSummary {
    /// The step the run was resumed from.
    pub resumed_from: Option<u64>,
    /// The numbers of the first step.
    pub first: Option<GrpoMetrics>,
    /// The numbers of the last step.
    pub last: Option<GrpoMetrics>,
    /// The accuracy before the first step.
    pub before: Option<AccuracyMetrics>,
    /// The accuracy after the last step.
    pub after: Option<AccuracyMetrics>,
}

/// Trains to the end in the folder `out` and leaves there
///
/// - the adapter, in the state of the last save;
/// - [`METRICS_FILE`] with a line for every step and every measurement, [`COMPLETIONS_FILE`](run::COMPLETIONS_FILE) with completions of
///   every step, and [`OPTIONS_FILE`](run::OPTIONS_FILE);
/// - [`STATE_FILE`](run::STATE_FILE), from which a run can be resumed, with the same bytes at the end whenever it was killed.
///
/// `observe` sees each line of metrics as it is written. Nothing is written before the first step has succeeded.
///
/// # Errors
/// Those of [`Trainer::step`] and of writing; [`Error::Resume`](crate::Error::Resume) when the state in `out` belongs to another run, and
/// [`Error::InvalidOption`](crate::Error::InvalidOption) when `out` holds an interrupted run and `resume` is not set. Finished runs are
/// overwritten.
pub fn run<M: CausalLanguageModel>(
    trainer: &mut Trainer<'_, M>,
    out: &Path,
    options: &RunOptions,
    observe: &mut dyn FnMut(&Metrics),
) -> Result<RunSummary> {
    let RunOptions { accuracy, eval_every, save_every, layout, resume } = *options;
    let measured = accuracy.map(|accuracy| format!("{accuracy:?}"));
    trainer.fingerprint_mut().record("accuracy", measured);
    let pace = Pace { eval_every, save_every, layout, resume };
    let resumed_from = run::run(&mut Reinforced { trainer, accuracy }, out, pace, observe)?;

    // From the file, so that a resumed run reports what an undisturbed one does.
    let (mut steps, mut measured) = (Vec::new(), Vec::new());
    for line in Metrics::read(&out.join(METRICS_FILE))? {
        match line {
            Metrics::Grpo(line) => steps.push(line),
            Metrics::Accuracy(line) => measured.push(line),
            _ => {}
        }
    }
    Ok(RunSummary {
        resumed_from,
        first: steps.first().cloned(),
        last: steps.last().cloned(),
        before: measured.first().cloned().filter(|line| line.step == 0),
        after: measured.last().cloned().filter(|line| line.step > 0),
    })
}

struct Reinforced<'r, 'a, M> {
    trainer: &'r mut Trainer<'a, M>,
    accuracy: Option<AccuracyOptions>,
}

impl<M: CausalLanguageModel> Training for Reinforced<'_, '_, M> {
    const COMPLETIONS: bool = true;

    type Model = M;

    fn model(&self) -> &PeftModel<M> {
        self.trainer.model()
    }

    fn steps(&self) -> u64 {
        self.trainer.config().steps
    }

    fn finished_steps(&self) -> u64 {
        self.trainer.finished_steps()
    }

    fn step(&mut self) -> Result<Step> {
        let (metrics, completions) = self.trainer.logged_step(self.trainer.config().log_prompts)?;
        Ok(Step { metrics: Metrics::Grpo(metrics), completions })
    }

    fn evaluate(&mut self) -> Result<Option<Metrics>> {
        let Some(options) = self.accuracy else { return Ok(None) };
        let accuracy = self.trainer.evaluate(&options)?;
        Ok(Some(Metrics::Accuracy(accuracy.metrics(self.trainer.finished_steps()))))
    }

    fn check_finite(&mut self) -> Result<()> {
        self.trainer.check_finite()
    }

    fn state(&self) -> Result<TrainerState> {
        self.trainer.state()
    }

    fn restore(&mut self, state: &TrainerState) -> Result<()> {
        self.trainer.restore(state)
    }

    fn fingerprint_mut(&mut self) -> &mut Fingerprint {
        self.trainer.fingerprint_mut()
    }
}
