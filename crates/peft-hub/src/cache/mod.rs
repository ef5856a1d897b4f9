//! The cache folder, in the layout of Python's `huggingface_hub`:
//!
//! ```text
//! models--user--name/refs/main              the commit that `main` was when it was last looked up
//! models--user--name/blobs/<hash>           the files, by SHA-256 (large ones) or by git's hash
//! models--user--name/snapshots/<commit>/…   links to them under their names
//! models--user--name/.no_exist/<commit>/…   names that the commit is known not to have
//! .locks/models--user--name/<hash>.lock     held while a file is fetched
//! ```

mod lock;

pub(crate) use lock::Lock;

use crate::source::is_commit;
use crate::{Error, RepoRef, Result};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The files of one repository in the cache.
#[derive(Debug)]
pub(crate) struct RepoCache {
    root: PathBuf,
    repo: RepoRef,
    folder: PathBuf,
    layout: CacheRepo,
}

impl RepoCache {
    pub(crate) fn new(root: &Path, repo: &RepoRef) -> Self {
        let name = Repo::with_revision(repo.id.clone(), RepoType::Model, repo.revision.clone());
        let folder = root.join(name.folder_name());
        let layout = Cache::new(root.to_owned()).repo(name);
        Self { root: root.to_owned(), repo: repo.clone(), folder, layout }
    }

    /// The commit that the revision was when it was last looked up.
    pub(crate) fn commit(&self) -> Option<String> {
        if self.repo.is_pinned() {
            return Some(self.repo.revision.clone());
        }
        let text = fs::read_to_string(self.reference()).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers which commit the revision is.
    pub(crate) fn remember(&self, commit: &str) -> Result<()> {
        if self.repo.is_pinned() || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference();
        replace(&path, |temporary| fs::write(temporary, commit)).map_err(|e| Error::io("write", &path, &e))
    }

    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(&self.repo.revision)
    }

    /// Where the files of a commit are.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// A file of a commit, if it is here. One that leads out of the cache is not: nothing that is fetched does.
    pub(crate) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(name);
        let (target, root) = (path.canonicalize().ok()?, self.root.canonicalize().ok()?);
        (target.starts_with(root) && target.is_file()).then_some(path)
    }

    /// Whether a commit is known not to have a file.
    pub(crate) fn is_absent(&self, commit: &str, name: &str) -> bool {
        self.absent(commit, name).exists()
    }

    /// Remembers that a commit does not have a file. Only saves a request, so it may fail.
    pub(crate) fn remember_absent(&self, commit: &str, name: &str) {
        let path = self.absent(commit, name);
        let parent = path.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = parent.and_then(|()| fs::write(&path, "")) {
            tracing::debug!(%error, path = %path.display(), "cannot be noted as absent");
        }
    }

    fn absent(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(name)
    }

    /// Where a file with this hash is kept.
    pub(crate) fn blob(&self, hash: &str) -> PathBuf {
        self.layout.blob_path(hash)
    }

    /// Waits for the right to fetch a file.
    pub(crate) fn lock(&self, hash: &str, waiting: impl FnOnce()) -> Result<Lock> {
        let folder = self.root.join(".locks").join(self.folder.file_name().unwrap_or_default());
        Lock::take(&folder.join(format!("{hash}.lock")), waiting)
    }

    /// Gives a fetched file its name in a commit.
    pub(crate) fn link(&self, commit: &str, name: &str, hash: &str) -> Result<PathBuf> {
        let blob = self.blob(hash);
        let pointer = self.snapshot(commit).join(name);
        let linked = pointer.canonicalize().is_ok_and(|target| blob.canonicalize().is_ok_and(|blob| blob == target));
        if !linked {
            let up = "../".repeat(name.split('/').count() + 1);
            let relative = Path::new(&up).join("blobs").join(hash);
            replace(&pointer, |temporary| symlink(&relative, &blob, temporary))
                .map_err(|e| Error::io("write", &pointer, &e))?;
        }
        Ok(pointer)
    }
}

/// Makes a file beside its place and moves it there in one step, so that others see all of it or nothing.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let staging = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
    let temporary = staging.path().join("file");
    make(&temporary)?;
    fs::rename(&temporary, path)
}

#[cfg(unix)]
fn symlink(relative: &Path, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Links need a privilege that users seldom have.
#[cfg(not(unix))]
fn symlink(_relative: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}
