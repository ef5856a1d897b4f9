//! Singular triplets of weights on disk, so that a model is decomposed once.

mod entry;
mod eviction;

use crate::linalg::{TruncatedSvd, VERSION};
use crate::{Error, Result, WeightHash};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// The environment variable that names the cache folder.
pub const CACHE_VARIABLE: &str = "CANDLE_PEFT_CACHE";

/// A folder of singular triplets, found by the hash of the weight, the rank and the version of the algorithm.
///
/// Pass one to [`PeftModel::with_factor_cache`](crate::PeftModel::with_factor_cache); without, nothing is read or written. Any number of
/// threads and processes may share a folder: an entry appears whole, has a checksum, and is made again when it does not fit. A cache
/// never makes a start fail. What goes wrong is logged once per value with `tracing::warn!`, and the factors are computed.
#[derive(Clone, Debug)]
pub struct FactorCache {
    dir: PathBuf,
    limit: u64,
    warned: Arc<AtomicBool>,
}

/// What an entry was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FactorKey {
    pub(crate) weight: WeightHash,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// As it was asked for and the shape allows it.
    pub(crate) rank: usize,
}

impl FactorKey {
    /// Half of the hash names the file; all of it is inside.
    fn file_name(&self) -> String {
        format!("{}-r{}-v{VERSION}.{ENTRY}", &self.weight.to_string()[..32], self.rank)
    }
}

/// How entries' names end, and how those of files end that a writer has not finished.
const ENTRY: &str = "factors";
const UNFINISHED: &str = "unfinished";

impl FactorCache {
    /// How large a cache grows unless it is told otherwise: 2 GiB.
    pub const DEFAULT_LIMIT: u64 = 2 << 30;

    /// The cache in this folder, which is made when there is something to put into it.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), limit: Self::DEFAULT_LIMIT, warned: Arc::default() }
    }

    /// The user's: `factors` in `$CANDLE_PEFT_CACHE`, else in `candle-peft` of `$XDG_CACHE_HOME`, else in `~/.cache/candle-peft`. `None`
    /// when none of them is known.
    pub fn of_user() -> Option<Self> {
        Self::from_env(|name| std::env::var_os(name))
    }

    /// [`FactorCache::of_user`] by another environment.
    fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = folder(CACHE_VARIABLE)
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("candle-peft")))
            .or_else(|| Some(folder("HOME").or_else(|| folder("USERPROFILE"))?.join(".cache").join("candle-peft")))?;
        Some(Self::new(cache.join("factors")))
    }

    /// The same cache with another limit in bytes. When it is passed, the entries that were used least recently are removed.
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The entry of this key, if there is a whole one.
    pub(crate) fn get(&self, key: &FactorKey) -> Option<TruncatedSvd> {
        let path = self.dir.join(key.file_name());
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    self.warn("read", &path, &error);
                }
                return None;
            }
        };
        match entry::parse(&bytes, key) {
            Ok(svd) => {
                // By its time the least recently used is known. Where it cannot be set, entries go by when they were made.
                let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(svd)
            }
            Err(error) => {
                tracing::warn!("{}: made again, for it is damaged: {error}", path.display());
                None
            }
        }
    }

    /// Keeps an entry; whether it did.
    pub(crate) fn put(&self, key: &FactorKey, svd: &TruncatedSvd) -> bool {
        let path = self.dir.join(key.file_name());
        match self.write(&path, key, svd) {
            Ok(kept) => kept,
            Err(error) => {
                self.warn("write", &path, &error);
                false
            }
        }
    }

    /// Removes the entries that were used least recently until the rest is within the limit.
    pub(crate) fn trim(&self) {
        if let Err(error) = eviction::trim(&self.dir, self.limit) {
            self.warn("trim", &self.dir, &error);
        }
    }

    fn write(&self, path: &Path, key: &FactorKey, svd: &TruncatedSvd) -> Result<bool> {
        let bytes = entry::bytes(key, svd)?;
        if bytes.len() as u64 > self.limit {
            return Ok(false);
        }
        let failed = |error| Error::io("write into", &self.dir, error);
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let suffix = format!(".{UNFINISHED}");
        let mut file = tempfile::Builder::new().suffix(&suffix).tempfile_in(&self.dir).map_err(failed)?;
        // A power failure may leave an entry half written; its checksum tells.
        file.write_all(&bytes).map_err(failed)?;
        file.persist(path).map_err(|e| failed(e.error))?;
        Ok(true)
    }

    /// One warning says it: every entry would fail alike.
    fn warn(&self, action: &str, path: &Path, error: &dyn std::fmt::Display) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "cannot {action} the cache of factors at {}, so factors are computed: {error}",
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FactorCache;
    use std::path::Path;

    fn dir(variables: &[(&str, &str)]) -> Option<std::path::PathBuf> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        FactorCache::from_env(find).map(|cache| cache.dir().to_owned())
    }

    #[test]
    fn the_folder_follows_from_the_environment() {
        let (home, xdg, own) = (("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("CANDLE_PEFT_CACHE", "/c"));
        assert_eq!(dir(&[home, xdg, own]).as_deref(), Some(Path::new("/c/factors")));
        assert_eq!(dir(&[home, xdg, ("CANDLE_PEFT_CACHE", "")]).as_deref(), Some(Path::new("/x/candle-peft/factors")));
        assert_eq!(dir(&[home]).as_deref(), Some(Path::new("/h/.cache/candle-peft/factors")));
        assert_eq!(dir(&[]), None);
    }
}
