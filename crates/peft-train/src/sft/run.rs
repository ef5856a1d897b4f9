//! A whole supervised run in an output folder.

use super::Trainer;
use crate::data::Dataset;
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::metrics::{EvalMetrics, Metrics, TrainMetrics};
use crate::run::{self, METRICS_FILE, Pace, Step, Training};
use crate::state::TrainerState;
use peft_core::PeftModel;
use peft_core::checkpoint::Layout;
use peft_models::CausalLanguageModel;
use std::path::Path;
use std::time::Instant;

/// What [`run()`] does beside taking steps.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// Data to evaluate on before the first step and after the last one.
    pub eval_data: Option<&'a Dataset>,
    /// Steps from one evaluation to the next; only at both ends where there is none.
    pub eval_every: Option<u64>,
    /// Steps from one saved state to the next.
    pub save_every: u64,
    /// How the adapter is laid out.
    pub layout: Layout,
    /// Goes on from the state in the output folder; where there is none, the run starts from the beginning.
    pub resume: bool,
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self { eval_data: None, eval_every: None, save_every: 100, layout: Layout::Peft, resume: false }
    }
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RunSummary {
    /// The step the run was resumed from.
    pub resumed_from: Option<u64>,
    /// The numbers of the first step.
    pub first: Option<TrainMetrics>,
    /// The numbers of the last step.
    pub last: Option<TrainMetrics>,
    /// The evaluation before the first step.
    pub eval_before: Option<EvalMetrics>,
    /// The evaluation after the last step.
    pub eval_after: Option<EvalMetrics>,
}

/// Trains to the end in the folder `out` and leaves there
///
/// - the adapter, in the state of the last save;
/// - [`METRICS_FILE`] with a line for every step and every evaluation, and [`OPTIONS_FILE`](run::OPTIONS_FILE);
/// - [`STATE_FILE`](run::STATE_FILE), from which a run can be resumed. It is kept at the end: a run with a constant learning rate can be
///   continued with more steps. Delete it when it is no longer wanted.
///
/// `observe` sees each line as it is written. A state is saved only after [`Trainer::check_finite`], so the last one on disk
/// is good whatever happens later; when a loss stops being finite, the state before the update that spoilt it is saved. Nothing is
/// written before the first step has succeeded.
///
/// # Errors
/// Those of [`Trainer::step`] and of writing; [`Error::Resume`](crate::Error::Resume) when the state in `out` belongs to another run, and
/// [`Error::InvalidOption`](crate::Error::InvalidOption) when `out` holds an interrupted run and `resume` is not set. Finished runs are
/// overwritten.
pub fn run<M: CausalLanguageModel>(
    trainer: &mut Trainer<'_, M>,
    out: &Path,
    options: &RunOptions<'_>,
    observe: &mut dyn FnMut(&Metrics),
) -> Result<RunSummary> {
    let eval_data = options.eval_data;
    let fingerprint = trainer.fingerprint_mut();
    fingerprint.record("eval_data", eval_data.map(|data| format!("{:016x}", data.fingerprint())));
    let RunOptions { eval_every, save_every, layout, resume, .. } = *options;
    let pace = Pace { eval_every, save_every, layout, resume };
    let resumed_from = run::run(&mut Supervised { trainer, eval_data }, out, pace, observe)?;

    // From the file, so that a resumed run reports what an undisturbed one does.
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for line in Metrics::read(&out.join(METRICS_FILE))? {
        match line {
            Metrics::Train(line) => train.push(line),
            Metrics::Eval(line) => eval.push(line),
            _ => {}
        }
    }
    Ok(RunSummary {
        resumed_from,
        first: train.first().copied(),
        last: train.last().copied(),
        eval_before: eval.first().copied().filter(|line| line.step == 0),
        eval_after: eval.last().copied().filter(|line| line.step > 0),
    })
}

struct Supervised<'r, 'a, M> {
    trainer: &'r mut Trainer<'a, M>,
    eval_data: Option<&'r Dataset>,
}

impl<M: CausalLanguageModel> Training for Supervised<'_, '_, M> {
    const COMPLETIONS: bool = false;

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
        Ok(Step { metrics: Metrics::Train(self.trainer.step()?), completions: Vec::new() })
    }

    fn evaluate(&mut self) -> Result<Option<Metrics>> {
        let Some(data) = self.eval_data else { return Ok(None) };
        let started = Instant::now();
        let evaluation = self.trainer.evaluate(data)?;
        Ok(Some(Metrics::Eval(EvalMetrics {
            step: self.trainer.finished_steps(),
            loss: evaluation.loss,
            perplexity: evaluation.perplexity,
            tokens: evaluation.tokens as u64,
            seconds: started.elapsed().as_secs_f64(),
        })))
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
