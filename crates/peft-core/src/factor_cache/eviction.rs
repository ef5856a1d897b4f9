//! Keeping the cache within its limit.

use super::{ENTRY, UNFINISHED};
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file that no writer has finished for this long was left by one that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// Removes entries, the least recently used first, until the rest is within the limit, and what killed writers left.
///
/// Nothing but the cache's own files is touched. Files that vanish meanwhile are another process's work.
pub(super) fn trim(dir: &Path, limit: u64) -> Result<()> {
    let mut entries: Vec<(SystemTime, PathBuf, u64)> = vec![];
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let Some(metadata) = present(fs::metadata(&path))? else { continue };
        let used = metadata.modified()?;
        match path.extension().and_then(OsStr::to_str) {
            Some(ENTRY) => entries.push((used, path, metadata.len())),
            Some(UNFINISHED) if used.elapsed().is_ok_and(|age| age > ABANDONED) => {
                present(fs::remove_file(&path))?;
            }
            _ => {}
        }
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, _, len)| len).sum();
    for (_, path, len) in entries {
        if total <= limit {
            break;
        }
        present(fs::remove_file(&path))?;
        total -= len;
    }
    Ok(())
}

fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
