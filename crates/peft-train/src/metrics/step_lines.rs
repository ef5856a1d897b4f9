//! JSONL files of a run that grow by step.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An append-only JSONL file of objects with a `step`, complete up to the last line after a kill.
///
/// All lines of a step are to be written before the state of that step is saved: [`resume`](Self::resume) keeps exactly
/// the lines up to the saved step.
#[derive(Debug)]
pub struct StepLines {
    path: PathBuf,
    file: File,
}

#[derive(Deserialize)]
struct Line {
    step: u64,
}

impl StepLines {
    /// Starts a new file; one that is there already is emptied.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::io("create", path, error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes on after the lines of `step`, cutting off those of later steps and a last line that a kill left torn.
    ///
    /// # Errors
    /// When the file does not exist or a line before the end is not an object with a step.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let io = |error| Error::io("read", path, error);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let length = kept_length(path, &file, step)?;
        let truncate = |error| Error::io("truncate", path, error);
        file.set_len(length).map_err(truncate)?;
        file.seek(SeekFrom::End(0)).map_err(truncate)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line and hands it to the operating system.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let io = |error| Error::io("write", &self.path, error);
        let mut line = serde_json::to_vec(line).map_err(|error| io(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.flush()).map_err(io)
    }
}

/// The bytes of the leading lines up to `step`.
fn kept_length(path: &Path, file: &File, step: u64) -> Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut kept, mut number, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        number += 1;
        let read = reader.read_until(b'\n', &mut line).map_err(|error| Error::io("read", path, error))?;
        if line.pop() != Some(b'\n') {
            return Ok(kept);
        }
        let found: Line = serde_json::from_slice(&line)
            .map_err(|error| Error::Resume(format!("{}, line {number}: {error}", path.display())))?;
        if found.step > step {
            return Ok(kept);
        }
        kept += read as u64;
    }
}
