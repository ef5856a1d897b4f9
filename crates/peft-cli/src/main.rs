//! Command line for training, evaluating, merging and converting adapters.

mod args;
mod base;
mod commands;
mod data;
mod destination;
mod device;
mod factors;
mod method;
mod output;
mod setting;
mod task;
mod transfers;
mod waiting;
mod warnings;

use args::Cli;
use clap::Parser;
use clap::error::ErrorKind;
use output::{Output, UsageError};
use std::process::ExitCode;
use warnings::Warnings;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let output = Output::new(cli.json);
    // There is one subscriber in a process, and none before this.
    let _ = tracing::subscriber::set_global_default(Warnings);
    let outcome = commands::run(cli.command, output);
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let code = if error.is::<UsageError>() { USAGE } else { FAILURE };
    // An error that cannot be printed still has its exit code.
    let _ = output.error(&message(&error));
    ExitCode::from(code)
}

/// An error and its causes; those that an error mentions itself are not repeated.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !message.contains(&cause) {
            let separator = if message.is_empty() { "" } else { ": " };
            message = format!("{message}{separator}{cause}");
        }
    }
    message
}

/// Ends a run whose command line could not be parsed, or that asked for help.
fn refuse(error: &clap::Error) -> ExitCode {
    let helps = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let _ = error.print();
    if !helps && std::env::args().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let _ = output::write_text(&format!("{}\n", serde_json::json!({ "error": message })));
    }
    ExitCode::from(if helps { 0 } else { USAGE })
}
