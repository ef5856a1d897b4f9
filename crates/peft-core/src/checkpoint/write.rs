//! Writing adapter folders so that a crash leaves the old files whole.

use super::{COMPACT_FILE, CONFIG_FILE, WEIGHTS_FILE};
use crate::{AdapterConfig, Error, Result};
use candle_core::Tensor;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// What PEFT reads when there is no [`WEIGHTS_FILE`].
const PICKLE: &str = "adapter_model.bin";

/// Writes an adapter folder: config and tensors, as PEFT lays them out, or as a compact checkpoint if the config says so.
///
/// The tensors of the other layout are removed: PEFT would read old ones beside a compact checkpoint.
///
/// # Errors
/// When a file cannot be written; files that were there before are untouched then.
pub fn write_adapter<'a>(
    dir: &Path,
    config: &AdapterConfig,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
) -> Result<()> {
    let compact = config.meta.compact.is_some();
    let (file, other) = if compact { (COMPACT_FILE, WEIGHTS_FILE) } else { (WEIGHTS_FILE, COMPACT_FILE) };
    if compact && dir.join(PICKLE).exists() {
        return Err(Error::model(dir, format!("not overwritten: PEFT would read its {PICKLE} in place of {file}")));
    }
    let weights = write_tensors(tensors)?;
    write_folder(dir, &[(file, &weights), (CONFIG_FILE, config.to_json()?.as_bytes())])?;
    let other = dir.join(other);
    match fs::remove_file(&other) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", other, e)),
        _ => Ok(()),
    }
}

/// The bytes of a safetensors file with the metadata that PyTorch's libraries expect.
pub fn write_tensors<'a>(tensors: impl IntoIterator<Item = (String, &'a Tensor)>) -> Result<Vec<u8>> {
    let tensors = tensors.into_iter().map(|(name, t)| Ok((name, t.contiguous()?))).collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(tensors, Some(metadata)).map_err(candle_core::Error::from)?)
}

/// Writes files into a folder, making it if need be.
///
/// A new folder appears with all its files or not at all. In a folder that exists each file is replaced in one step, after all
/// of them have reached the disk.
///
/// # Errors
/// [`Error::Io`] naming the file; nothing that was there before is changed or lost then.
pub fn write_folder(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let existed = dir.is_dir();
    let home = if existed { dir } else { parent };
    // The one obstacle to a rename that can be seen beforehand; met half way it would leave new files beside old ones.
    if let Some((name, _)) = files.iter().find(|(name, _)| dir.join(name).is_dir()) {
        return Err(Error::io("write", dir.join(name), ErrorKind::IsADirectory.into()));
    }
    fs::create_dir_all(home).map_err(|e| Error::io("create", home, e))?;
    // The staging folder lies on the same file system, so that renaming is one step; it vanishes when this function fails.
    let staging =
        tempfile::Builder::new().prefix(".saving-").tempdir_in(home).map_err(|e| Error::io("write into", home, e))?;
    for (name, bytes) in files {
        let failed = |e| Error::io("write", dir.join(name), e);
        let mut file = File::create(staging.path().join(name)).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    if existed {
        for (name, _) in files {
            fs::rename(staging.path().join(name), dir.join(name)).map_err(|e| Error::io("write", dir.join(name), e))?;
        }
    } else {
        make_readable(staging.path())?;
        fs::rename(staging.path(), dir).map_err(|e| Error::io("create", dir, e))?;
        // The folder lives on under its new name; there is nothing left to clean up.
        let _ = staging.keep();
    }
    Ok(())
}

/// Temporary folders are private; a saved one has the usual permissions.
#[cfg(unix)]
fn make_readable(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("write", dir, e))
}

#[cfg(not(unix))]
fn make_readable(_: &Path) -> Result<()> {
    Ok(())
}
