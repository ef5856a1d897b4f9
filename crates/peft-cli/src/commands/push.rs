//! `push`: an adapter onto the Hub.

use crate::args::PushArgs;
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::hub::PushOptions;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    dir: PathBuf,
    repo: String,
    url: String,
    commit: String,
    files: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pushed {} to {}", self.files.join(", "), self.url)?;
        write!(f, "commit {}", self.commit)
    }
}

pub(super) fn run(args: &PushArgs, pretrained: &Pretrained) -> Result<Report> {
    let options = PushOptions::default().private(args.private).message(&args.message);
    let pushed = pretrained.push(&args.dir, &args.repo, options)?;
    Ok(Report {
        dir: args.dir.clone(),
        repo: args.repo.clone(),
        url: pushed.url,
        commit: pushed.commit,
        files: pushed.files,
    })
}
