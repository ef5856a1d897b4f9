//! A run as one HTML page: curves, evaluations, options and samples of what the model wrote.
//!
//! The page needs nothing but itself: no network, no scripts. It is light or dark as its reader prefers.

mod charts;
mod completions;
mod evaluations;
mod metrics;
mod options;
mod page;
mod plot;
mod text;
mod thinning;

use crate::error::Result;
use completions::Completions;
use metrics::Series;
use options::Options;
use std::path::Path;

/// What a run folder holds.
///
/// `metrics.jsonl` is needed. Every number in it becomes a curve over its `step`, of whatever `kind` the line is. With
/// `completions.jsonl` the page shows samples, with `run.json` the options. A last line that is still being written is left out.
///
/// ```
/// use peft_train::report::Report;
///
/// let run = tempfile::tempdir()?;
/// std::fs::write(run.path().join("metrics.jsonl"), "{\"kind\": \"train\", \"step\": 1, \"loss\": 0.5}\n")?;
/// let page = Report::read(run.path())?.to_html();
/// assert!(page.starts_with("<!doctype html>") && page.contains("<svg"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Report {
    title: String,
    series: Series,
    completions: Completions,
    options: Options,
}

impl Report {
    /// Reads a run folder.
    ///
    /// # Errors
    /// When `metrics.jsonl` is missing; names the file and line that is not what it should be.
    pub fn read(run: &Path) -> Result<Self> {
        let resolved = run.canonicalize();
        let name = resolved.as_deref().unwrap_or(run).file_name().unwrap_or(run.as_os_str());
        Ok(Self {
            title: name.to_string_lossy().into_owned(),
            series: Series::read(&run.join("metrics.jsonl"))?,
            completions: Completions::read(&run.join("completions.jsonl"))?,
            options: Options::read(&run.join("run.json"))?,
        })
    }

    /// The last step that there are numbers of.
    pub fn last_step(&self) -> u64 {
        self.series.last_step() as u64
    }

    /// The page.
    pub fn to_html(&self) -> String {
        page::html(&self.title, &self.series, &self.completions, &self.options)
    }
}
