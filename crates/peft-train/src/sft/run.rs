//! A whole run in an output folder.

use super::Trainer;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::metrics::{EvalMetrics, Metrics, MetricsWriter, TrainMetrics};
use crate::state::TrainerState;
use peft_core::checkpoint::Layout;
use peft_models::CausalLanguageModel;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The file of the numbers of each step.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The file of the state that a resumed run starts from.
pub const STATE_FILE: &str = "trainer_state.safetensors";

/// What [`run`] does beside taking steps.
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
/// - [`METRICS_FILE`] with a line for every step and every evaluation;
/// - [`STATE_FILE`], from which a run can be resumed. It is kept at the end: a run with a constant learning rate can be
///   continued with more steps. Delete it when it is no longer wanted.
///
/// `observe` sees each line as it is written. A state is saved only after [`Trainer::check_finite`], so the last one on disk
/// is good whatever happens later; when a loss stops being finite, the state before the update that spoilt it is saved. Nothing is
/// written before the first step has succeeded.
///
/// # Errors
/// Those of [`Trainer::step`] and of writing; [`Error::Resume`] when the state in `out` belongs to another run, and
/// [`Error::InvalidOption`] when `out` holds an interrupted run and `resume` is not set. Finished runs are overwritten.
pub fn run<M: CausalLanguageModel>(
    trainer: &mut Trainer<'_, M>,
    out: &Path,
    options: &RunOptions<'_>,
    observe: &mut dyn FnMut(&Metrics),
) -> Result<RunSummary> {
    Run::start(trainer, out, options, observe)?.finish()
}

struct Run<'r, 'a, M> {
    trainer: &'r mut Trainer<'a, M>,
    out: &'r Path,
    options: &'r RunOptions<'r>,
    observe: &'r mut dyn FnMut(&Metrics),
    adapter: String,
    /// Made with the first line.
    metrics: Option<MetricsWriter>,
    /// The latest state whose loss is known to be finite.
    good: Option<TrainerState>,
    /// The step of the state on disk.
    saved: Option<u64>,
    resumed_from: Option<u64>,
}

impl<'r, 'a, M: CausalLanguageModel> Run<'r, 'a, M> {
    fn start(
        trainer: &'r mut Trainer<'a, M>,
        out: &'r Path,
        options: &'r RunOptions<'r>,
        observe: &'r mut dyn FnMut(&Metrics),
    ) -> Result<Self> {
        for (option, every) in [("save_every", Some(options.save_every)), ("eval_every", options.eval_every)] {
            if every == Some(0) {
                return Err(Error::option(option, "it must be at least 1"));
            }
        }
        let adapter = match trainer.model().active().collect::<Vec<_>>()[..] {
            [name] => name.to_owned(),
            ref names => {
                let message = format!("a run saves one adapter, but {} are active", names.len());
                return Err(Error::option("adapters", message));
            }
        };
        trainer.model().check_layout(&adapter, options.layout)?;
        let fingerprint = trainer.fingerprint_mut();
        fingerprint.record("eval_data", options.eval_data.map(|data| format!("{:016x}", data.fingerprint())));
        fingerprint.record("eval_every", options.eval_every);

        remove_leftovers(out)?;
        let (mut metrics, mut resumed_from) = (None, None);
        if let Some(state) = TrainerState::load(&out.join(STATE_FILE))? {
            if options.resume {
                trainer.restore(&state).map_err(|error| in_folder(out, error))?;
                metrics = Some(MetricsWriter::resume(&out.join(METRICS_FILE), state.step)?);
                resumed_from = Some(state.step);
            } else if state.step < trainer.config().steps {
                let message = format!(
                    "{} holds a run that stopped after step {}: resume it, or delete its {STATE_FILE}",
                    out.display(),
                    state.step
                );
                return Err(Error::option("out", message));
            }
        }
        Ok(Self { trainer, out, options, observe, adapter, metrics, good: None, saved: resumed_from, resumed_from })
    }

    fn finish(mut self) -> Result<RunSummary> {
        match self.train() {
            Ok(()) => self.summary(),
            // What could not be written once is not tried again.
            Err(error @ (Error::Io { .. } | Error::Core(_))) => Err(error),
            Err(error) => Err(self.keep_last_good(error)),
        }
    }

    fn train(&mut self) -> Result<()> {
        let before = match self.trainer.finished_steps() {
            0 => self.evaluate()?,
            _ => None,
        };
        if self.trainer.is_finished() {
            return self.save();
        }
        let mut pending: Vec<Metrics> = before.into_iter().collect();
        while !self.trainer.is_finished() {
            let before = self.trainer.state()?;
            pending.push(Metrics::Train(self.trainer.step()?));
            self.good = Some(before);
            let (step, last) = (self.trainer.finished_steps(), self.trainer.is_finished());
            if last || self.options.eval_every.is_some_and(|every| step.is_multiple_of(every)) {
                pending.extend(self.evaluate()?);
            }
            for line in pending.drain(..) {
                self.write(&line)?;
            }
            if last || step.is_multiple_of(self.options.save_every) {
                self.trainer.check_finite()?;
                self.save()?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Option<Metrics>> {
        let Some(data) = self.options.eval_data else { return Ok(None) };
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

    fn write(&mut self, line: &Metrics) -> Result<()> {
        let writer = match &mut self.metrics {
            Some(writer) => writer,
            None => {
                fs::create_dir_all(self.out).map_err(|error| Error::io("create", self.out, error))?;
                // The state of an earlier, finished run must not be taken for one of this run.
                let state = self.out.join(STATE_FILE);
                match fs::remove_file(&state) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", state, error)),
                    _ => {}
                }
                self.metrics.insert(MetricsWriter::create(&self.out.join(METRICS_FILE))?)
            }
        };
        writer.write(line)?;
        (self.observe)(line);
        Ok(())
    }

    /// Writes the adapter, then the state: the adapter of a step that has no state yet is written again on resume.
    fn save(&mut self) -> Result<()> {
        self.trainer.model().save_adapter_as(&self.adapter, self.out, self.options.layout)?;
        self.trainer.state()?.save(&self.out.join(STATE_FILE))?;
        self.saved = Some(self.trainer.finished_steps());
        Ok(())
    }

    /// Goes back to the last good state and saves it, if it is newer than the one on disk.
    fn keep_last_good(&mut self, error: Error) -> Error {
        if let Some(good) = self.good.take().filter(|good| self.metrics.is_some() && self.saved < Some(good.step))
            && let Err(second) = self.trainer.restore(&good).and_then(|()| self.save())
        {
            return second;
        }
        match error {
            Error::NonFiniteLoss { step, value, .. } => {
                Error::NonFiniteLoss { step, value, last_good: self.saved.map(|_| PathBuf::from(self.out)) }
            }
            error => error,
        }
    }

    /// Reads the numbers of the run from its file, so that a resumed run reports what an undisturbed one does.
    fn summary(&self) -> Result<RunSummary> {
        let path = self.out.join(METRICS_FILE);
        let text = fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
        let (mut train, mut eval) = (Vec::new(), Vec::new());
        for line in text.lines() {
            match serde_json::from_str(line).map_err(|error| Error::io("read", &path, error.into()))? {
                Metrics::Train(line) => train.push(line),
                Metrics::Eval(line) => eval.push(line),
            }
        }
        Ok(RunSummary {
            resumed_from: self.resumed_from,
            first: train.first().copied(),
            last: train.last().copied(),
            eval_before: eval.first().copied().filter(|line: &EvalMetrics| line.step == 0),
            eval_after: eval.last().copied().filter(|line| line.step > 0),
        })
    }
}

fn in_folder(out: &Path, error: Error) -> Error {
    match error {
        Error::Resume(message) => Error::Resume(format!("{}: {message}", out.display())),
        error => error,
    }
}

/// Removes what a killed process was about to save.
fn remove_leftovers(out: &Path) -> Result<()> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", out, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read", out, error))?;
        if entry.file_name().to_string_lossy().starts_with(".saving-") {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}
