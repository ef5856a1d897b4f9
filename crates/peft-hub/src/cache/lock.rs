//! One process at a time fetches a file.

use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often a lock that another process holds is tried.
const INTERVAL: Duration = Duration::from_millis(50);

/// The right to fetch a file, given up when it is dropped. The system takes it from a process that ends, however it ends; Python's
/// `filelock` respects it and is respected.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Waits for a lock; `waiting` is called once if another process holds it.
    pub(crate) fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self> {
        let failed = |e| Error::io("write", path, &e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    thread::sleep(INTERVAL);
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file does the same.
        let _ = self.file.unlock();
    }
}
