//! `convert --to mlx` and `--to gguf`: an adapter in the format of another program.

use super::lora::{Modules, rank};
use super::{Conversion, Report};
use crate::args::ConvertArgs;
use crate::destination::{check_distinct, check_writable, check_writable_file};
use crate::output::{note, usage_error};
use anyhow::Result;
use candle_core::Tensor;
use candle_peft::core::checkpoint::DetachedAdapter;
use candle_peft::export::{BaseModel, to_gguf, to_mlx};
use candle_peft::hub::{Part, Snapshot};
use candle_peft::lora::{Rank, to_lora_with};
use candle_peft::models::ModelFiles;
use candle_peft::{Error, PretrainedError};
use std::collections::BTreeMap;

/// What all conversions to a format of another program begin with.
struct Source {
    /// The adapter, or the LoRA of the chosen rank that approximates it.
    adapter: DetachedAdapter,
    base: BaseModel,
    from: &'static str,
    converted: Option<Modules>,
}

impl Source {
    /// The weights of the base model are read only when the adapter cannot be opened or converted without them.
    fn open(conversion: &Conversion<'_>) -> Result<Self> {
        let folder = conversion.base(Part::ModelConfig).map_err(|error| match error {
            PretrainedError::NoBase { .. } => {
                usage_error("this format needs --base MODEL: the base model's config.json tells what its modules are")
            }
            error => error.into(),
        })?;
        let base = BaseModel::open(folder.path())?;
        let rank = rank(conversion.args);
        let (adapter, from, converted) = match conversion.alone().and_then(|adapter| at_rank(adapter, rank)) {
            Ok(source) => source,
            Err(error) => match conversion.base(Part::Model) {
                Ok(whole) if ModelFiles::open(whole.path()).is_ok() => at_rank(conversion.on_base()?, rank)?,
                _ => return Err(error.into()),
            },
        };
        Ok(Self { adapter, base, from, converted })
    }
}

/// The adapter as it is or at the rank that was chosen, its method, and what became of each module.
fn at_rank(adapter: DetachedAdapter, rank: Rank) -> Result<(DetachedAdapter, &'static str, Option<Modules>), Error> {
    let from = adapter.config.method.peft_type();
    if rank == Rank::Exact {
        return Ok((adapter, from, None));
    }
    let lora = to_lora_with(&adapter, rank)?;
    let adapter = DetachedAdapter::from_source(lora.config, &lora.tensors)?;
    Ok((adapter, from, Some(Modules::new(rank, lora.modules))))
}

pub(super) fn mlx<'a>(args: &ConvertArgs, open: impl FnOnce() -> Result<Conversion<'a>>) -> Result<Report> {
    check_writable(&args.out)?;
    let conversion = open()?;
    check_distinct(&args.out, conversion.folder.path(), "--adapter")?;
    let source = Source::open(&conversion)?;
    let mlx = to_mlx(&source.adapter, &source.base)?;
    mlx.save(&args.out)?;
    Ok(report(args, source, "MLX", &mlx.tensors, &mlx.assumed_base_weights))
}

pub(super) fn gguf<'a>(args: &ConvertArgs, open: impl FnOnce() -> Result<Conversion<'a>>) -> Result<Report> {
    if args.out.extension().is_none_or(|extension| extension != "gguf") {
        let out = args.out.display();
        return Err(usage_error(format!("--out {out}: a GGUF adapter is one file, whose name must end in .gguf")));
    }
    check_writable_file(&args.out)?;
    let conversion = open()?;
    let source = Source::open(&conversion)?;
    let mut gguf = to_gguf(&source.adapter, &source.base)?;
    if let Some(name) = name(&conversion.folder) {
        gguf = gguf.with_name(name);
    }
    gguf.save(&args.out)?;
    Ok(report(args, source, "GGUF", &gguf.tensors, &gguf.assumed_base_weights))
}

/// The last part of a repository's name, or the name of a folder, also when it was given as `.`.
fn name(adapter: &Snapshot) -> Option<String> {
    if let Some(origin) = adapter.origin() {
        return origin.repo.id.rsplit('/').next().map(str::to_owned);
    }
    let folder = adapter.path().canonicalize().ok()?;
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

fn report(
    args: &ConvertArgs,
    source: Source,
    to: &'static str,
    tensors: &BTreeMap<String, Tensor>,
    assumed: &[String],
) -> Report {
    for path in assumed {
        note(format_args!(
            "{path}: the base weight in the adapter's file was not exported; the server's model must have the same"
        ));
    }
    Report {
        adapter: args.adapter.clone(),
        out: args.out.clone(),
        from: source.from,
        to,
        modules: source.adapter.sites.len(),
        tensors: tensors.len(),
        parameters: tensors.values().map(Tensor::elem_count).sum(),
        converted: source.converted,
    }
}
