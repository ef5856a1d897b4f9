//! The numbers of a run as a JSONL file.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line of a metrics file.
///
/// `seconds` is the only field that depends on the clock: all others are the same in a run that was interrupted and
/// resumed as in one that was not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Metrics {
    /// An optimizer step.
    Train(TrainMetrics),
    /// An evaluation after a step.
    Eval(EvalMetrics),
}

/// The numbers of an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// The mean loss per token before the step, in nats.
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens with a loss in the step's batches.
    pub tokens: u64,
    /// Wall-clock time of the step.
    pub seconds: f64,
}

/// The numbers of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// The finished steps; 0 before the first.
    pub step: u64,
    /// The mean loss per token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Tokens with a loss in the evaluation data.
    pub tokens: u64,
    /// Wall-clock time of the evaluation.
    pub seconds: f64,
}

impl Metrics {
    fn step(&self) -> u64 {
        match self {
            Self::Train(metrics) => metrics.step,
            Self::Eval(metrics) => metrics.step,
        }
    }
}

/// An append-only JSONL file of [`Metrics`], complete up to the last line after a kill.
///
/// All lines of a step are to be written before the state of that step is saved: [`resume`](Self::resume) keeps exactly
/// the lines up to the saved step.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Starts a new file; one that is there already is emptied.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::io("create", path, error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes on after the lines of `step`, cutting off those of later steps and a last line that a kill left torn.
    ///
    /// # Errors
    /// When the file does not exist or a line before the end is not one of metrics.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let io = |error| Error::io("read", path, error);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let length = kept_length(path, &file, step)?;
        let truncate = |error| Error::io("truncate", path, error);
        file.set_len(length).map_err(truncate)?;
        file.seek(SeekFrom::End(0)).map_err(truncate)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line and hands it to the operating system.
    pub fn write(&mut self, metrics: &Metrics) -> Result<()> {
        let io = |error| Error::io("write", &self.path, error);
        let mut line = serde_json::to_vec(metrics).map_err(|error| io(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.flush()).map_err(io)
    }
}

/// The bytes of the leading lines up to `step`.
fn kept_length(path: &Path, file: &File, step: u64) -> Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut kept, mut number, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        number += 1;
        let read = reader.read_until(b'\n', &mut line).map_err(|error| Error::io("read", path, error))?;
        if line.pop() != Some(b'\n') {
            return Ok(kept);
        }
        let metrics: Metrics = serde_json::from_slice(&line)
            .map_err(|error| Error::Resume(format!("{}, line {number}: {error}", path.display())))?;
        if metrics.step() > step {
            return Ok(kept);
        }
        kept += read as u64;
    }
}
