//! A whole run in an output folder: metrics, saved states, exact resume.

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::metrics::{Metrics, StepLines};
use crate::state::TrainerState;
use peft_core::PeftModel;
use peft_core::checkpoint::{Layout, write_folder};
use peft_models::CausalLanguageModel;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file of the numbers of each step and evaluation.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The file of what the model wrote, where a training has it write.
pub const COMPLETIONS_FILE: &str = "completions.jsonl";

/// The file of the options of the run.
pub const OPTIONS_FILE: &str = "run.json";

/// The file of the state that a resumed run starts from.
pub const STATE_FILE: &str = "trainer_state.safetensors";

/// What leads to a trained adapter, one step after another.
pub(crate) trait Training {
    /// Whether steps have completions to keep.
    const COMPLETIONS: bool;

    type Model: CausalLanguageModel;

    /// The model in training.
    fn model(&self) -> &PeftModel<Self::Model>;

    /// All steps of the run.
    fn steps(&self) -> u64;

    /// Steps taken so far.
    fn finished_steps(&self) -> u64;

    /// Takes a step, whole or not at all.
    fn step(&mut self) -> Result<Step>;

    /// Measures the model, where there is something to measure it on.
    fn evaluate(&mut self) -> Result<Option<Metrics>>;

    /// Refuses a state that is not one to go on from.
    fn check_finite(&mut self) -> Result<()>;

    fn state(&self) -> Result<TrainerState>;

    fn restore(&mut self, state: &TrainerState) -> Result<()>;

    fn fingerprint_mut(&mut self) -> &mut Fingerprint;
}

/// What a step leaves behind.
pub(crate) struct Step {
    pub(crate) metrics: Metrics,
    /// Objects with a `step`.
    pub(crate) completions: Vec<Value>,
}

/// How often things happen beside steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) eval_every: Option<u64>,
    pub(crate) save_every: u64,
    pub(crate) layout: Layout,
    pub(crate) resume: bool,
}

/// Trains to the end in the folder `out`; returns the step that the run was resumed from.
///
/// A state is saved only after [`Training::check_finite`], so the last one on disk is good whatever happens later; when a loss
/// stops being finite, the state before the update that spoilt it is saved. Nothing is written before the first step has succeeded.
pub(crate) fn run<T: Training>(
    training: &mut T,
    out: &Path,
    pace: Pace,
    observe: &mut dyn FnMut(&Metrics),
) -> Result<Option<u64>> {
    Run::start(training, out, pace, observe)?.finish()
}

struct Run<'r, T> {
    training: &'r mut T,
    out: &'r Path,
    pace: Pace,
    observe: &'r mut dyn FnMut(&Metrics),
    adapter: String,
    /// Made with the first line.
    files: Option<Files>,
    /// The latest state whose loss is known to be finite.
    good: Option<TrainerState>,
    /// The step of the state on disk.
    saved: Option<u64>,
    resumed_from: Option<u64>,
}

struct Files {
    metrics: StepLines,
    completions: Option<StepLines>,
}

impl<'r, T: Training> Run<'r, T> {
    fn start(training: &'r mut T, out: &'r Path, pace: Pace, observe: &'r mut dyn FnMut(&Metrics)) -> Result<Self> {
        for (option, every) in [("save_every", Some(pace.save_every)), ("eval_every", pace.eval_every)] {
            if every == Some(0) {
                return Err(Error::option(option, "it must be at least 1"));
            }
        }
        let adapter = match training.model().active().collect::<Vec<_>>()[..] {
            [name] => name.to_owned(),
            ref names => {
                let message = format!("a run saves one adapter, but {} are active", names.len());
                return Err(Error::option("adapters", message));
            }
        };
        training.model().check_layout(&adapter, pace.layout)?;
        training.fingerprint_mut().record("eval_every", pace.eval_every);

        remove_leftovers(out)?;
        let (mut files, mut resumed_from) = (None, None);
        if let Some(state) = TrainerState::load(&out.join(STATE_FILE))? {
            if pace.resume {
                training.restore(&state).map_err(|error| in_folder(out, error))?;
                files = Some(Files::resume::<T>(out, state.step)?);
                resumed_from = Some(state.step);
            } else if state.step < training.steps() {
                let message = format!(
                    "{} holds a run that stopped after step {}: resume it, or delete its {STATE_FILE}",
                    out.display(),
                    state.step
                );
                return Err(Error::option("out", message));
            }
        }
        Ok(Self { training, out, pace, observe, adapter, files, good: None, saved: resumed_from, resumed_from })
    }

    fn finish(mut self) -> Result<Option<u64>> {
        match self.train() {
            Ok(()) => Ok(self.resumed_from),
            // What could not be written once is not tried again.
            Err(error @ (Error::Io { .. } | Error::Core(_))) => Err(error),
            Err(error) => Err(self.keep_last_good(error)),
        }
    }

    fn train(&mut self) -> Result<()> {
        let before = match self.training.finished_steps() {
            0 => self.training.evaluate()?,
            _ => None,
        };
        if self.is_finished() {
            return self.save();
        }
        let mut pending: Vec<Metrics> = before.into_iter().collect();
        while !self.is_finished() {
            let before = self.training.state()?;
            let Step { metrics, completions } = self.training.step()?;
            pending.push(metrics);
            self.good = Some(before);
            let (step, last) = (self.training.finished_steps(), self.is_finished());
            if last || self.pace.eval_every.is_some_and(|every| step.is_multiple_of(every)) {
                pending.extend(self.training.evaluate()?);
            }
            self.write(&pending, &completions)?;
            pending.clear();
            if last || step.is_multiple_of(self.pace.save_every) {
                self.training.check_finite()?;
                self.save()?;
            }
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.training.finished_steps() >= self.training.steps()
    }

    fn write(&mut self, lines: &[Metrics], completions: &[Value]) -> Result<()> {
        let files = match &mut self.files {
            Some(files) => files,
            None => self.files.insert(Files::create::<T>(self.out, self.training.fingerprint_mut())?),
        };
        if let Some(file) = &mut files.completions {
            completions.iter().try_for_each(|line| file.write(line))?;
        }
        for line in lines {
            files.metrics.write(line)?;
            (self.observe)(line);
        }
        Ok(())
    }

    /// Writes the adapter, then the state: the adapter of a step that has no state yet is written again on resume.
    fn save(&mut self) -> Result<()> {
        self.training.model().save_adapter_as(&self.adapter, self.out, self.pace.layout)?;
        self.training.state()?.save(&self.out.join(STATE_FILE))?;
        self.saved = Some(self.training.finished_steps());
        Ok(())
    }

    /// Goes back to the last good state and saves it, if it is newer than the one on disk.
    fn keep_last_good(&mut self, error: Error) -> Error {
        if let Some(good) = self.good.take().filter(|good| self.files.is_some() && self.saved < Some(good.step))
            && let Err(second) = self.training.restore(&good).and_then(|()| self.save())
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
}

impl Files {
    fn create<T: Training>(out: &Path, options: &Fingerprint) -> Result<Self> {
        fs::create_dir_all(out).map_err(|error| Error::io("create", out, error))?;
        // The state of an earlier, finished run must not be taken for one of this run.
        let state = out.join(STATE_FILE);
        match fs::remove_file(&state) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", state, error)),
            _ => {}
        }
        let options = serde_json::to_vec_pretty(options).map_err(peft_core::Error::from)?;
        write_folder(out, &[(OPTIONS_FILE, &options)])?;
        Ok(Self {
            metrics: StepLines::create(&out.join(METRICS_FILE))?,
            completions: T::COMPLETIONS.then(|| StepLines::create(&out.join(COMPLETIONS_FILE))).transpose()?,
        })
    }

    fn resume<T: Training>(out: &Path, step: u64) -> Result<Self> {
        Ok(Self {
            metrics: StepLines::resume(&out.join(METRICS_FILE), step)?,
            completions: T::COMPLETIONS.then(|| StepLines::resume(&out.join(COMPLETIONS_FILE), step)).transpose()?,
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
