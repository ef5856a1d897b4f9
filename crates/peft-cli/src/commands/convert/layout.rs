//! `convert --to peft` and `--to compact`: the same adapter with or without what follows from its base model.

use super::{Conversion, Report};
use crate::args::ConvertArgs;
use crate::destination::{check_distinct, check_writable};
use crate::output::usage_error;
use anyhow::{Result, bail};
use candle_core::Device;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, Layout, read_adapter};
use candle_peft::hub::Part;

pub(super) fn convert<'a>(
    args: &ConvertArgs,
    to: Layout,
    open: impl FnOnce() -> Result<Conversion<'a>>,
) -> Result<Report> {
    if args.rank.is_some() || args.threshold.is_some() {
        return Err(usage_error("--rank and --threshold approximate an adapter, and this conversion is exact"));
    }
    check_writable(&args.out)?;
    let conversion = open()?;
    let (folder, registry) = (conversion.folder.path(), conversion.pretrained.registry());
    check_distinct(&args.out, folder, "--adapter")?;
    let (config, _) = read_adapter(folder, registry)?;
    let (from, name) = match (config.meta.compact, to) {
        (Some(_), Layout::Compact) => bail!("{}: it is a compact checkpoint already", folder.display()),
        (None, Layout::Peft) => bail!("{}: it is laid out as PEFT does already", folder.display()),
        (compact, _) if compact.is_some() => ("compact checkpoint", "PEFT's layout"),
        _ => ("PEFT's layout", "compact checkpoint"),
    };
    let base = conversion.base(Part::Model)?;
    let mut model = args.factors.on(base.load(None, &Device::Cpu)?);
    conversion.pretrained.attach(&mut model, DEFAULT_ADAPTER, &conversion.folder)?;
    model.save_adapter_as(DEFAULT_ADAPTER, &args.out, to)?;
    let (_, file) = read_adapter(&args.out, registry)?;
    let sizes = candle_peft::core::TensorSource::names(&file);
    Ok(Report {
        adapter: args.adapter.clone(),
        out: args.out.clone(),
        from,
        to: name,
        modules: model.adapter(DEFAULT_ADAPTER)?.sites.len(),
        tensors: sizes.len(),
        parameters: model.adapter(DEFAULT_ADAPTER)?.params.trainable_count(),
        converted: None,
    })
}
