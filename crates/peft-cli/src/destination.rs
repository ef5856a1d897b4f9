//! Checks of an output folder or file before any work is done for it.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Refuses a folder that cannot be written, without leaving anything there.
pub(crate) fn check_writable(out: &Path) -> Result<()> {
    let context = || format!("cannot write into {}", out.display());
    let absolute = std::path::absolute(out).with_context(context)?;
    // `a/b` below a file `a` does not exist either, but cannot come to exist.
    let Some(existing) = absolute.ancestors().find(|path| path.symlink_metadata().is_ok()) else {
        bail!("cannot write into {}: no folder above it exists", out.display())
    };
    if !existing.is_dir() {
        bail!("cannot write into {}: {} is not a folder", out.display(), existing.display());
    }
    tempfile::Builder::new().prefix(".writable-").tempdir_in(existing).with_context(context)?;
    Ok(())
}

/// Refuses a file that cannot be written, without leaving anything there.
pub(crate) fn check_writable_file(out: &Path) -> Result<()> {
    if out.is_dir() {
        bail!("cannot write {}: it is a folder", out.display());
    }
    check_writable(out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Refuses to write a result over what it is made from.
pub(crate) fn check_distinct(out: &Path, source: &Path, option: &str) -> Result<()> {
    let resolved = |path: &Path| -> Option<PathBuf> { path.canonicalize().ok() };
    if resolved(out).is_some() && resolved(out) == resolved(source) {
        bail!("--out and {option} are the same folder, {}", out.display());
    }
    Ok(())
}
