//! `report`: a run as an HTML page.

use crate::args::ReportArgs;
use crate::destination::check_writable_file;
use anyhow::{Context, Result};
use candle_peft::core::checkpoint::write_folder;
use candle_peft::train::report::Report as Page;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

const FILE: &str = "report.html";

#[derive(Debug, Serialize)]
pub(super) struct Report {
    out: PathBuf,
    steps: u64,
    bytes: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrote {}, a page of {} steps", self.out.display(), self.steps)
    }
}

pub(super) fn run(args: &ReportArgs) -> Result<Report> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join(FILE));
    let page = Page::read(&args.run)?;
    check_writable_file(&out)?;
    let html = page.to_html();
    let name = out.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("cannot write {}: its name is not text", out.display()))?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    write_folder(folder, &[(name, html.as_bytes())])?;
    Ok(Report { steps: page.last_step(), bytes: html.len(), out })
}
