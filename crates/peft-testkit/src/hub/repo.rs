//! Repositories: branches of commits of files.

use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::BTreeMap;

/// A file in a commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Stored {
    /// In git itself.
    Regular(Vec<u8>),
    /// On the other host.
    Large {
        /// The hash by which it is found.
        sha256: String,
        /// Bytes.
        size: usize,
    },
}

impl Stored {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Regular(bytes) => bytes.len(),
            Self::Large { size, .. } => *size,
        }
    }

    /// The hash of what is in git: the file, or the pointer to it.
    pub(super) fn git_hash(&self) -> String {
        match self {
            Self::Regular(bytes) => git_hash(bytes),
            Self::Large { sha256, size } => {
                let spec = "https://git-lfs.github.com/spec/v1";
                git_hash(format!("version {spec}\noid sha256:{sha256}\nsize {size}\n").as_bytes())
            }
        }
    }
}

/// What git calls a file.
pub fn git_hash(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

/// The SHA-256 of some bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug, Default)]
pub(super) struct Repo {
    pub(super) private: bool,
    pub(super) gated: bool,
    /// Branches, tags and pull requests.
    refs: BTreeMap<String, String>,
    commits: BTreeMap<String, BTreeMap<String, Stored>>,
}

impl Repo {
    pub(super) fn commit(&mut self, branch: &str, files: Vec<(String, Stored)>) -> String {
        let mut tree = self.tree(branch).cloned().unwrap_or_default();
        tree.extend(files);
        let listing: String = tree.iter().map(|(path, file)| format!("{path} {}\n", file.git_hash())).collect();
        let parent = self.refs.get(branch).cloned().unwrap_or_default();
        let commit = git_hash(format!("{parent}\n{listing}").as_bytes());
        self.commits.insert(commit.clone(), tree);
        self.refs.insert(branch.to_owned(), commit.clone());
        commit
    }

    /// The commit that a branch or hash names.
    pub(super) fn resolve(&self, revision: &str) -> Option<String> {
        let named = self.refs.get(revision).cloned();
        named.or_else(|| self.commits.contains_key(revision).then(|| revision.to_owned()))
    }

    pub(super) fn tree(&self, revision: &str) -> Option<&BTreeMap<String, Stored>> {
        self.commits.get(&self.resolve(revision)?)
    }

    pub(super) fn file(&self, revision: &str, path: &str) -> Option<&Stored> {
        self.tree(revision)?.get(path)
    }

    pub(super) fn names(&self, revision: &str) -> Vec<String> {
        self.tree(revision).map(|tree| tree.keys().cloned().collect()).unwrap_or_default()
    }
}
