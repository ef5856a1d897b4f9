//! A program of one's own as a reward.

mod answer;
mod group;
mod process;

use super::{Reward, Sample, Score};
use crate::error::{Error, Result};
use answer::parse;
use group::Groups;
use process::{Fault, Limits, exchange};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Asks a program what completions are worth.
///
/// On its standard input it gets one JSON object a line for each sample: `prompt` (as the model saw it), `completion`, `answer`, and
/// the other fields of the problem under their names. For each it prints one line, a number or `{"reward": number}`; blank lines
/// do not count. It is to end with success when its input does.
///
/// Each sample has a process of its own, so whatever a completion makes the program do, it does to that sample alone: where it
/// hangs, floods, crashes, closes its pipes, prints something else or starts other programs, that sample is
/// [`Score::Failed`], and the others score as if it were not there. A program that is slow to start may be given
/// [several samples](Self::with_samples_per_process) at a time.
///
/// When a process is done or out of time, its whole process group is killed; what left the group by itself is not. On Windows only
/// the process itself is killed. The program has the rights of the run: put code that a model wrote into a sandbox.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    command: Vec<OsString>,
    workers: NonZeroUsize,
    samples_per_process: NonZeroUsize,
    timeout: Duration,
    output_limit: usize,
    on_failure: f64,
}

impl Program {
    /// A reward named `program` that runs this program with these arguments: as many at a time as there are processors, each
    /// for ten seconds at most.
    pub fn new(program: impl Into<OsString>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            name: "program".to_owned(),
            command: std::iter::once(program.into()).chain(args.into_iter().map(Into::into)).collect(),
            workers: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            samples_per_process: NonZeroUsize::MIN,
            timeout: Duration::from_secs(10),
            output_limit: 1 << 20,
            on_failure: 0.0,
        }
    }

    /// A reward that runs a line of the shell: `sh -c`, on Windows `cmd /C`.
    pub fn shell(line: &str) -> Self {
        let (shell, option) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        Self::new(shell, [option, line])
    }

    /// The same under another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same with this many processes at a time.
    #[must_use]
    pub fn with_workers(mut self, workers: NonZeroUsize) -> Self {
        self.workers = workers;
        self
    }

    /// The same with this many samples to a process; all lines come at once.
    ///
    /// Where anything is wrong with what such a process gives, each of its samples is scored again by itself. What that cannot
    /// see is a sample that changes what the program makes of the next one: a completion that gets the program to answer for
    /// its neighbour, or to answer differently from then on.
    #[must_use]
    pub fn with_samples_per_process(mut self, samples: NonZeroUsize) -> Self {
        self.samples_per_process = samples;
        self
    }

    /// The same with this much time for each sample, the start of the process included.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same with this many bytes that a process may write for each sample, to standard output and to standard error; a megabyte
    /// otherwise.
    #[must_use]
    pub fn with_output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// The same with another value for samples without a score; 0 otherwise.
    #[must_use]
    pub fn with_on_failure(mut self, value: f64) -> Self {
        self.on_failure = value;
        self
    }

    /// The scores of the samples that share a process.
    fn score_together(&self, rows: &[String], groups: &Groups) -> Result<Vec<Score>> {
        if let [row] = rows {
            return Ok(vec![self.score_alone(row, groups)?]);
        }
        match self.exchange(rows, groups)? {
            Ok(values) => Ok(values.into_iter().map(Score::Value).collect()),
            // Nothing says whose fault it was, nor whether the lines before it belong to the rows before it.
            Err(_) => rows.iter().map(|row| self.score_alone(row, groups)).collect(),
        }
    }

    fn score_alone(&self, row: &String, groups: &Groups) -> Result<Score> {
        Ok(match self.exchange(std::slice::from_ref(row), groups)? {
            Ok(values) => Score::Value(values[0]),
            Err(reason) => Score::Failed(reason),
        })
    }

    /// One value for each row, or what is wrong with this process.
    fn exchange(&self, rows: &[String], groups: &Groups) -> Result<Result<Vec<f64>, String>> {
        let limits = Limits { timeout: self.timeout, output: self.output_limit };
        match exchange(&self.command, rows, limits, groups) {
            Ok(lines) => Ok(lines.iter().map(|line| parse(line)).collect()),
            Err(Fault::Process(reason)) => Ok(Err(reason)),
            Err(Fault::Start(error)) => {
                let message = format!("cannot start {}: {error}", self.command[0].display());
                Err(Error::reward(&self.name, message))
            }
            Err(Fault::Kill(error)) => {
                Err(Error::reward(&self.name, format!("cannot end the processes of the program: {error}")))
            }
        }
    }

    /// Takes chunks of rows until there are none, and gives their numbers with their scores.
    fn work(&self, rows: &[String], next: &AtomicUsize, groups: &Groups) -> Result<Vec<(usize, Vec<Score>)>> {
        let chunks: Vec<&[String]> = rows.chunks(self.samples_per_process.get()).collect();
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(index) else { return Ok(done) };
            done.push((index, self.score_together(chunk, groups)?));
        }
    }
}

impl Reward for Program {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, samples: &[Sample<'_>]) -> Result<Vec<Score>> {
        let rows: Vec<String> = samples.iter().map(row).collect();
        let groups = Groups::new()
            .map_err(|error| Error::reward(&self.name, format!("cannot start what ends its processes: {error}")))?;
        let next = AtomicUsize::new(0);
        let chunks = rows.len().div_ceil(self.samples_per_process.get());
        let mut done = thread::scope(|scope| -> Result<_> {
            let others = (1..self.workers.get().min(chunks)).map_while(|_| {
                // Fewer threads are as good, only slower.
                thread::Builder::new().spawn_scoped(scope, || self.work(&rows, &next, &groups)).ok()
            });
            let others: Vec<_> = others.collect();
            let mut done = self.work(&rows, &next, &groups)?;
            for worker in others {
                let panicked = |_| Error::reward(&self.name, "a thread that runs it panicked");
                done.extend(worker.join().map_err(panicked)??);
            }
            Ok(done)
        })?;
        done.sort_by_key(|(index, _)| *index);
        Ok(done.into_iter().flat_map(|(_, scores)| scores).collect())
    }

    fn on_failure(&self) -> f64 {
        self.on_failure
    }
}

/// What the program is told of a sample.
fn row(sample: &Sample<'_>) -> String {
    let mut row: Map<String, Value> = Map::new();
    row.insert("prompt".to_owned(), sample.prompt.into());
    row.insert("completion".to_owned(), sample.completion.into());
    row.insert("answer".to_owned(), sample.problem.answer.as_str().into());
    for (name, value) in &sample.problem.fields {
        row.entry(name.as_str()).or_insert_with(|| value.clone());
    }
    Value::from(row).to_string()
}
