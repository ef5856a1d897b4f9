//! `merge`: base model and adapter as one model folder.

use crate::args::MergeArgs;
use crate::base::Base;
use crate::destination::{check_distinct, check_writable};
use crate::output::note;
use anyhow::Result;
use candle_peft::core::checkpoint::DEFAULT_ADAPTER;
use candle_peft::hub::Part;
use candle_peft::models::{CausalLanguageModel, CausalLm, Companions};
use candle_peft::{Error, PeftModel, Pretrained};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    base: String,
    adapter: String,
    out: PathBuf,
    dtype: String,
    parameters: usize,
    files: Vec<FileSize>,
}

#[derive(Debug, Serialize)]
struct FileSize {
    name: String,
    bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "merged {} into {}", self.adapter, self.base)?;
        writeln!(f, "{} parameters as {}", self.parameters, self.dtype)?;
        write!(f, "saved to {}", self.out.display())
    }
}

pub(super) fn run(args: &MergeArgs, pretrained: &Pretrained) -> Result<Report> {
    check_writable(&args.out)?;
    let adapter = pretrained.folder(&args.adapter, Part::Adapter)?;
    check_distinct(&args.out, adapter.path(), "--adapter")?;
    let base = Base::open(args.base.base.as_deref(), Some(&adapter), Part::WholeModel, pretrained)?;
    check_distinct(&args.out, base.dir(), "--base")?;
    let companions = Companions::of_folder(base.dir())?;
    let mut model = base.load(&args.base, 0)?;
    pretrained.attach(&mut model, DEFAULT_ADAPTER, &adapter)?;
    merge(&mut model, args.safe)?;
    let parameters = model.param_counts()?.total;
    let merged = model.merge_and_unload()?;
    merged.save(&args.out, &companions)?;
    Ok(Report {
        base: base.name().to_owned(),
        adapter: args.adapter.clone(),
        out: args.out.clone(),
        dtype: merged.dtype().as_str().to_owned(),
        parameters,
        files: file_sizes(&args.out)?,
    })
}

/// Merges; layers that share a weight are untied where the adapter changes only one of them.
fn merge(model: &mut PeftModel<CausalLm>, safe: bool) -> Result<()> {
    let once = |model: &mut PeftModel<CausalLm>| if safe { model.safe_merge() } else { model.merge() };
    match once(model) {
        Err(Error::TiedWeights { path, other }) => {
            note(format_args!("{path} and {other} shared one weight; the merged model has one for each"));
            model.untie()?;
            Ok(once(model)?)
        }
        outcome => Ok(outcome?),
    }
}

fn file_sizes(dir: &Path) -> Result<Vec<FileSize>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files.push(FileSize { name: entry.file_name().to_string_lossy().into_owned(), bytes: entry.metadata()?.len() });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}
