//! `convert`: an adapter as one of another method, or in another format.

mod export;
mod lora;

use crate::args::{ConversionArg, ConvertArgs};
use crate::destination::{check_distinct, check_writable};
use anyhow::Result;
use candle_core::Device;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, DetachedAdapter};
use candle_peft::lora::to_lora_with;
use candle_peft::models::load_model;
use candle_peft::{PeftModel, Registry};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    adapter: PathBuf,
    out: PathBuf,
    from: &'static str,
    to: &'static str,
    modules: usize,
    tensors: usize,
    parameters: usize,
    /// Ranks and errors, where the result is a LoRA that may be an approximation.
    #[serde(skip_serializing_if = "Option::is_none")]
    converted: Option<lora::Modules>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, modules, parameters, converted, out, .. } = self;
        writeln!(f, "{from} as {to}: {modules} modules, {parameters} parameters")?;
        if let Some(converted) = converted {
            writeln!(f, "{converted}")?;
        }
        write!(f, "saved to {}", out.display())
    }
}

pub(super) fn run(args: &ConvertArgs, registry: &Registry) -> Result<Report> {
    match args.to {
        ConversionArg::Lora => lora(args, registry),
        ConversionArg::Mlx => export::mlx(args, registry),
        ConversionArg::Gguf => export::gguf(args, registry),
    }
}

fn lora(args: &ConvertArgs, registry: &Registry) -> Result<Report> {
    check_writable(&args.out)?;
    check_distinct(&args.out, &args.adapter, "--adapter")?;
    let adapter = match &args.base {
        None => DetachedAdapter::open(&args.adapter, registry)?,
        Some(base) => on_base(args, base, registry)?,
    };
    let rank = lora::rank(args);
    let converted = to_lora_with(&adapter, rank)?;
    converted.save(&args.out)?;
    Ok(Report {
        adapter: args.adapter.clone(),
        out: args.out.clone(),
        from: adapter.config.method.peft_type(),
        to: converted.config.method.peft_type(),
        modules: adapter.sites.len(),
        tensors: converted.tensors.len(),
        parameters: converted.tensors.values().map(|tensor| tensor.elem_count()).sum(),
        converted: Some(lora::Modules::new(rank, converted.modules)),
    })
}

/// The adapter as it is on its base model, which knows what the adapter's file may not tell.
fn on_base(args: &ConvertArgs, base: &Path, registry: &Registry) -> Result<DetachedAdapter> {
    let mut model = PeftModel::new(load_model(base, None, &Device::Cpu)?);
    model.load_adapter(DEFAULT_ADAPTER, &args.adapter, registry)?;
    Ok(model.detached(DEFAULT_ADAPTER)?)
}
