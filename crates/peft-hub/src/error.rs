//! What can go wrong between here and the Hub.

use std::io;
use std::path::{Path, PathBuf};

/// A `Result` whose error is [`enum@Error`] unless stated otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model or adapter could not be fetched or pushed.
///
/// A message says all there is to say: an error that wraps another prints it, and does not hand it out as its source too. No message
/// holds a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that names neither a folder nor a repository.
    #[error("`{text}`: {reason}")]
    Source {
        /// What was given.
        text: String,
        /// What is wrong with it, and what was tried.
        reason: String,
    },
    /// An environment variable with a value that cannot be used.
    #[error("the environment variable {variable} is `{value}`; it must be {wanted}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// The Hub said no: there is no such repository or revision, or it may not be seen.
    #[error("{what}: {reason}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The Hub could not be reached, or went on failing.
    #[error("{what}: {reason}, in {attempts} attempts at {host}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// The host.
        host: String,
        /// What happened last.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A file that only the network has, in offline mode.
    #[error("{what} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// What was asked for.
        what: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// A repository that does not hold what was looked for.
    #[error("{repo}: {reason}")]
    Unfit {
        /// The repository and revision, or the folder.
        repo: String,
        /// What is missing.
        reason: String,
    },
    /// Something from the network that contradicts itself or must not be trusted; it was not kept.
    #[error("{what}: {reason}")]
    Distrusted {
        /// The file or page.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A write that needs to know who writes.
    #[error(
        "{what} needs a token: set HF_TOKEN, or log in with `hf auth login`; tokens are made at \
         https://huggingface.co/settings/tokens"
    )]
    NoToken {
        /// What was asked for.
        what: String,
    },
    /// A file or folder that cannot be read or written.
    #[error("cannot {action} {}: {reason}", .path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's word, and what to do about it.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), reason: error.to_string() }
    }

    /// Whether another attempt, or another day, may well succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
