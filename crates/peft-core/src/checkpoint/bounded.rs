//! Reading files of strangers: regular ones, and no more of them than makes sense.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// A file open for reading, and its length.
///
/// Folders, pipes and devices are refused before they are opened: opening a pipe waits for its other end.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let found = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    if !found.is_file() {
        return Err(Error::io("read", path, io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    Ok((file, found.len()))
}

/// The text of a file of at most `limit` bytes.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let (file, length) = open(path)?;
    if length > limit {
        let message = format!("it is {length} bytes long; more than {limit} are not read");
        return Err(Error::io("read", path, io::Error::new(ErrorKind::InvalidData, message)));
    }
    let mut text = String::new();
    // The length may have changed since.
    file.take(limit).read_to_string(&mut text).map_err(|e| Error::io("read", path, e))?;
    Ok(text)
}

/// The rest of a file of which `bytes` have been read, up to a length of `length` in all.
///
/// Memory that cannot be had is an error, not the end of the process.
pub(super) fn read_rest(path: &Path, file: &mut File, mut bytes: Vec<u8>, length: u64) -> Result<Vec<u8>> {
    let rest = length.saturating_sub(bytes.len() as u64);
    let too_large = || Error::io("read", path, ErrorKind::OutOfMemory.into());
    bytes.try_reserve_exact(usize::try_from(rest).map_err(|_| too_large())?).map_err(|_| too_large())?;
    file.take(rest).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}
