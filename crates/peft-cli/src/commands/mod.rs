//! One module per command.

mod combine;
mod convert;
mod eval;
mod generate;
mod init;
mod inspect;
mod merge;
mod train;

use crate::args::Command;
use crate::output::Output;
use anyhow::Result;
use candle_peft::core::checkpoint::DEFAULT_ADAPTER;
use candle_peft::models::CausalLm;
use candle_peft::{PeftModel, Registry};
use std::path::Path;

/// Runs a command and prints its result.
pub(crate) fn run(command: Command, output: Output) -> Result<()> {
    let registry = candle_peft::registry()?;
    match command {
        Command::Init(args) => output.report(&init::run(&args, &registry)?),
        Command::Train(args) => output.report(&train::run(&args, &registry)?),
        Command::Eval(args) => output.report(&eval::run(&args, &registry)?),
        Command::Generate(args) => generate::run(&args, &registry, output),
        Command::Merge(args) => output.report(&merge::run(&args, &registry)?),
        Command::Convert(args) => output.report(&convert::run(&args, &registry)?),
        Command::Combine(args) => output.report(&combine::run(&args, &registry)?),
        Command::Inspect(args) => output.report(&inspect::run(&args, &registry)?),
    }
}

/// Attaches the adapter of a folder, if one is named.
fn attach(model: &mut PeftModel<CausalLm>, adapter: Option<&Path>, registry: &Registry) -> Result<()> {
    if let Some(dir) = adapter {
        model.load_adapter(DEFAULT_ADAPTER, dir, registry)?;
    }
    Ok(())
}
