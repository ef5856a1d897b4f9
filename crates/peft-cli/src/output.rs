//! What a command prints, and the errors it ends with.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use std::fmt::{self, Display};
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};

/// A mistake in the command line itself: exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A mistake in the command line as an error to return.
pub(crate) fn usage_error(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Where results go: text for people, or one JSON object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether text may appear on standard output bit by bit.
    pub(crate) fn streams(self) -> bool {
        !self.json && stdout().is_terminal()
    }

    /// Prints the result of a command.
    pub(crate) fn report(self, report: &(impl Serialize + Display)) -> Result<()> {
        let text = if self.json { serde_json::to_string(report)? } else { report.to_string() };
        write_line(&text)
    }

    /// Prints an error: for people on standard error, and with `--json` as an object on standard output too.
    pub(crate) fn error(self, message: &str) -> Result<()> {
        note(format_args!("error: {message}"));
        if self.json { write_line(&json!({ "error": message }).to_string()) } else { Ok(()) }
    }
}

fn write_line(text: &str) -> Result<()> {
    write_text(&if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") })
}

/// Writes text to standard output at once. A reader that went away, such as `head`, has what it wanted.
pub(crate) fn write_text(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error. There is nowhere to report a failure of that to.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}
