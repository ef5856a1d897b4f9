//! The hashes by which the Hub names files.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What an ETag says a file hashes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Large files.
    Sha256(String),
    /// Small ones, as git hashes them: with their length in front.
    Git(String),
    /// A mirror's own; nothing can be checked.
    Unknown,
}

impl Digest {
    pub(crate) fn of(etag: &str) -> Self {
        let hexadecimal = etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match etag.len() {
            64 if hexadecimal => Self::Sha256(etag.to_owned()),
            40 if hexadecimal => Self::Git(etag.to_owned()),
            _ => Self::Unknown,
        }
    }

    /// What is wrong with a file that should hash to this.
    pub(crate) fn fault(&self, path: &Path) -> crate::Result<Option<String>> {
        let (expected, found) = match self {
            Self::Sha256(expected) => (expected, sha256(path)),
            Self::Git(expected) => (expected, git(path)),
            Self::Unknown => return Ok(None),
        };
        let found = found.map_err(|e| crate::Error::io("read", path, &e))?;
        let differs =
            || format!("its hash is {found} where the Hub says {expected}, so it was damaged on the way and not kept");
        Ok((found != *expected).then(differs))
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    hash(File::open(path)?, Sha256::new())
}

fn git(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", file.metadata()?.len()));
    hash(file, hasher)
}

fn hash<H: sha2::Digest>(mut file: File, mut hasher: H) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
