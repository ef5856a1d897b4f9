//! Files of one JSON object a line.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The fields of a line.
pub(crate) type Object = serde_json::Map<String, serde_json::Value>;

/// Hands each line to `take`, with its number counted from 1. Blank lines are skipped.
///
/// # Errors
/// Names the line that is not UTF-8, not JSON, not an object, or refused by `take`.
pub(crate) fn read(path: &Path, take: &mut dyn FnMut(usize, Object) -> Result<(), String>) -> Result<()> {
    lines(path, false, take)
}

/// The same for a file that another process may be writing: a last line without its end is skipped unless it is whole.
pub(crate) fn read_growing(path: &Path, take: &mut dyn FnMut(usize, Object) -> Result<(), String>) -> Result<()> {
    lines(path, true, take)
}

fn lines(path: &Path, grows: bool, take: &mut dyn FnMut(usize, Object) -> Result<(), String>) -> Result<()> {
    let io = |error| Error::io("read", path, error);
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let (mut line, mut bytes) = (0, Vec::new());
    loop {
        line += 1;
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(io)? == 0 {
            return Ok(());
        }
        let torn = grows && !bytes.ends_with(b"\n");
        match std::str::from_utf8(&bytes).map_err(|_| "is not UTF-8 text".to_owned()) {
            Ok(text) if text.trim().is_empty() => continue,
            text => match text.and_then(parse) {
                Err(_) if torn => return Ok(()),
                row => row.and_then(|row| take(line, row)).map_err(|message| Error::row(path, line, message))?,
            },
        }
    }
}

fn parse(text: &str) -> Result<Object, String> {
    // The reader sees a single line and reports its own line 1.
    serde_json::from_str(text.trim_end())
        .map_err(|error| error.to_string().replace(" at line 1 column ", " at column "))
}
