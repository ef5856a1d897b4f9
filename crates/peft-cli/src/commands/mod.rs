//! One module per command.

mod combine;
mod convert;
mod eval;
mod generate;
mod grpo;
mod init;
mod inspect;
mod merge;
mod push;
mod report;
mod train;
mod training;

use crate::args::Command;
use crate::output::Output;
use crate::transfers::Transfers;
use anyhow::Result;
use candle_peft::Pretrained;
use candle_peft::hub::{Part, Snapshot};

/// Runs a command and prints its result.
pub(crate) fn run(command: Command, output: Output) -> Result<()> {
    let pretrained = Pretrained::new()?.with_progress(Transfers::default());
    match command {
        Command::Init(args) => output.report(&init::run(&args, &pretrained)?),
        Command::Train(args) => output.report(&train::run(&args, &pretrained)?),
        Command::Grpo(args) => output.report(&grpo::run(&args, &pretrained)?),
        Command::Eval(args) => eval::run(&args, &pretrained, output),
        Command::Generate(args) => generate::run(&args, &pretrained, output),
        Command::Merge(args) => output.report(&merge::run(&args, &pretrained)?),
        Command::Convert(args) => output.report(&convert::run(&args, &pretrained)?),
        Command::Combine(args) => output.report(&combine::run(&args, &pretrained)?),
        Command::Push(args) => output.report(&push::run(&args, &pretrained)?),
        Command::Report(args) => output.report(&report::run(&args)?),
        Command::Inspect(args) => output.report(&inspect::run(&args, &pretrained)?),
    }
}

/// The adapter that was named, if one was.
fn adapter(name: Option<&str>, pretrained: &Pretrained) -> Result<Option<Snapshot>> {
    Ok(name.map(|name| pretrained.folder(name, Part::Adapter)).transpose()?)
}
