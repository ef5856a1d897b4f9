//! `convert`: an adapter as one of another method, or in another format.

mod export;
mod layout;
mod lora;

use crate::args::{ConversionArg, ConvertArgs};
use crate::destination::{check_distinct, check_writable};
use anyhow::Result;
use candle_core::Device;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, DetachedAdapter, Layout};
use candle_peft::hub::{Part, Snapshot};
use candle_peft::lora::to_lora_with;
use candle_peft::{BaseFolder, Error, Pretrained, PretrainedError};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    adapter: String,
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

/// An adapter to convert, and where its base model is found should it be needed.
struct Conversion<'a> {
    args: &'a ConvertArgs,
    pretrained: &'a Pretrained,
    folder: Snapshot,
}

pub(super) fn run(args: &ConvertArgs, pretrained: &Pretrained) -> Result<Report> {
    let open = || Ok(Conversion { args, pretrained, folder: pretrained.folder(&args.adapter, Part::Adapter)? });
    match args.to {
        ConversionArg::Lora => lora(args, open),
        ConversionArg::Mlx => export::mlx(args, open),
        ConversionArg::Gguf => export::gguf(args, open),
        ConversionArg::Peft => layout::convert(args, Layout::Peft, open),
        ConversionArg::Compact => layout::convert(args, Layout::Compact, open),
    }
}

fn lora<'a>(args: &ConvertArgs, open: impl FnOnce() -> Result<Conversion<'a>>) -> Result<Report> {
    check_writable(&args.out)?;
    let conversion = open()?;
    check_distinct(&args.out, conversion.folder.path(), "--adapter")?;
    let adapter = conversion.adapter()?;
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

impl Conversion<'_> {
    /// The adapter: on its base model if one was named or its method cannot do without, else by itself.
    fn adapter(&self) -> Result<DetachedAdapter> {
        if self.args.base.is_some() {
            return self.on_base();
        }
        match self.alone() {
            Err(error) if error.needs_base() => self.on_base(),
            adapter => Ok(adapter?),
        }
    }

    /// The adapter as its files tell it.
    fn alone(&self) -> Result<DetachedAdapter, Error> {
        DetachedAdapter::open(&self.folder, self.pretrained.registry())
    }

    /// The adapter as it is on its base model, which knows what the adapter's file may not tell.
    fn on_base(&self) -> Result<DetachedAdapter> {
        let base = self.base(Part::Model)?;
        let mut model = self.args.factors.on(base.load(None, &Device::Cpu)?);
        self.pretrained.attach(&mut model, DEFAULT_ADAPTER, &self.folder)?;
        Ok(model.detached(DEFAULT_ADAPTER)?)
    }

    /// The base model that was named, or that the adapter names.
    fn base(&self, part: Part) -> Result<BaseFolder, PretrainedError> {
        self.pretrained.base_for(self.args.base.as_deref(), &self.folder, part)
    }
}
