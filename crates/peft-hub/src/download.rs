//! One file from the Hub into the cache: resumed, checked, and only then given its name.

use crate::cache::RepoCache;
use crate::client::{Call, Client, in_words};
use crate::digest::Digest;
use crate::source::is_commit;
use crate::{Error, RepoRef, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use ureq::http::{HeaderMap, Method, StatusCode};
use ureq::{Body, http::Response};

/// Config, tokenizer and the like are read as a whole; no real one is a tenth as long.
const LONGEST_TEXT: u64 = 512 << 20;

/// What the Hub says of a file before it is fetched.
#[derive(Debug)]
struct Metadata {
    /// The name of the blob.
    hash: String,
    size: u64,
}

/// A file of a commit on the Hub.
pub(crate) struct Remote<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a RepoRef,
    pub(crate) commit: &'a str,
    pub(crate) name: &'a str,
}

/// How a transfer ended.
enum Transfer {
    Complete,
    /// It may go on from here.
    Broken(String),
}

impl Remote<'_> {
    /// Fetches the file unless it is here, and returns where it is.
    pub(crate) fn fetch(&self) -> Result<PathBuf> {
        if let Some(path) = self.cache.file(self.commit, self.name) {
            return Ok(path);
        }
        let metadata = self.metadata()?;
        let blob = self.cache.blob(&metadata.hash);
        if !is_whole(&blob, metadata.size) {
            let _lock = self.cache.lock(&metadata.hash, || {
                self.client.progress.note(&format!("another process fetches {}; waiting for it", self.what()));
            })?;
            // Whoever held the lock may have fetched it.
            if !is_whole(&blob, metadata.size) {
                self.download(&metadata, &blob)?;
            }
        }
        self.cache.link(self.commit, self.name, &metadata.hash)
    }

    fn what(&self) -> String {
        format!("{} of {}", self.name, self.repo.id)
    }

    fn distrusted(&self, reason: impl Into<String>) -> Error {
        Error::Distrusted { what: self.what(), reason: reason.into() }
    }

    fn call(&self, method: Method) -> Call {
        let path = format!("{}/resolve/{}/{}", self.repo.id, self.commit, encode(self.name));
        let mut call = self.client.call(method, &path, self.what());
        // Lengths and hashes are those of the file itself.
        call.headers.push(("accept-encoding", "identity".to_owned()));
        call
    }

    fn metadata(&self) -> Result<Metadata> {
        let call = self.call(Method::HEAD);
        let response = self.client.send(&call)?;
        let (status, headers) = (response.status(), response.headers());
        if !status.is_success() && !status.is_redirection() {
            return Err(self.client.refusal(&call, response));
        }
        if let Some(commit) = text(headers, "x-repo-commit").filter(|commit| *commit != self.commit) {
            return Err(self.distrusted(format!("commit {} was asked for, and {commit} was found", self.commit)));
        }
        let hash = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
        let hash = hash.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let hash = hash.filter(|hash| is_blob_name(hash));
        let hash = hash.ok_or_else(|| self.distrusted("the answer has no ETag, so this is not a Hub"))?;
        let linked = text(headers, "x-linked-size");
        let length = linked.or_else(|| text(headers, CONTENT_LENGTH.as_str()).filter(|_| status.is_success()));
        let size = length.and_then(|length| length.parse().ok());
        let size = size.ok_or_else(|| self.distrusted("the answer does not say how long the file is"))?;
        let is_text = [".json", ".jinja", ".txt", ".md"].iter().any(|end| self.name.ends_with(end));
        if is_text && size > LONGEST_TEXT {
            return Err(self.distrusted(format!("it claims to be {size} bytes long, which no such file is")));
        }
        Ok(Metadata { hash, size })
    }

    /// Fetches the file, going on with what an interrupted attempt left.
    fn download(&self, metadata: &Metadata, blob: &Path) -> Result<()> {
        let partial = blob.with_file_name(format!("{}.incomplete", metadata.hash));
        if let Some(folder) = blob.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
        }
        let shown = Shown(self.client);
        let (mut attempt, mut restarted) = (1, false);
        loop {
            let before = length(&partial);
            let outcome = self.transfer(metadata, &partial)?;
            match outcome {
                Transfer::Complete => match Digest::of(&metadata.hash).fault(&partial)? {
                    None => break,
                    // A part left by an earlier attempt may have been of something else, so once more from the start.
                    Some(_) if before > 0 && !restarted => {
                        restarted = true;
                        remove(&partial)?;
                    }
                    Some(reason) => {
                        remove(&partial)?;
                        return Err(self.distrusted(reason));
                    }
                },
                Transfer::Broken(reason) => {
                    // Progress is success: only attempts in a row that brought nothing count.
                    attempt = if length(&partial) > before { 1 } else { attempt + 1 };
                    if attempt > self.client.settings.attempts.max(1) {
                        return Err(self.client.unreachable(&self.call(Method::GET), reason, attempt - 1));
                    }
                    self.client.rest(&reason, attempt.saturating_sub(1).max(1), None);
                }
            }
        }
        drop(shown);
        fs::rename(&partial, blob).map_err(|e| Error::io("write", blob, &e))
    }

    /// One request for what is missing of the file.
    fn transfer(&self, metadata: &Metadata, partial: &Path) -> Result<Transfer> {
        let mut have = length(partial);
        if have > metadata.size {
            remove(partial)?;
            have = 0;
        }
        self.client.progress.begin(self.name, have, metadata.size);
        let mut file = self.open(partial)?;
        if have == metadata.size {
            return Ok(Transfer::Complete);
        }
        let mut call = self.call(Method::GET);
        call.leave_host = true;
        if have > 0 {
            call.headers.push(("range", format!("bytes={have}-")));
        }
        let response = self.client.send(&call)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if have > 0 => self.check_range(&response, have, metadata.size)?,
            StatusCode::OK => {
                // The whole file, whatever was asked for.
                if have > 0 {
                    file.set_len(0).map_err(|e| Error::io("write", partial, &e))?;
                    have = 0;
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                drop(file);
                remove(partial)?;
                return Ok(Transfer::Broken("the server has nothing after what is here".to_owned()));
            }
            _ => return Err(self.client.refusal(&call, response)),
        }
        let promised = response.body().content_length();
        if let Some(length) = promised.filter(|length| *length != metadata.size - have) {
            let expected = metadata.size - have;
            return Err(self.distrusted(format!("{length} bytes are offered where {expected} were announced")));
        }
        self.receive(response, metadata, &mut file, partial, have)
    }

    fn receive(
        &self,
        response: Response<Body>,
        metadata: &Metadata,
        file: &mut File,
        partial: &Path,
        mut have: u64,
    ) -> Result<Transfer> {
        let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) if have == metadata.size => break,
                Ok(0) => return Ok(Transfer::Broken(format!("the transfer ended after {have} bytes"))),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let reason = in_words(&ureq::Error::from(error));
                    return Ok(Transfer::Broken(format!("the transfer broke off after {have} bytes ({reason})")));
                }
            };
            have += read as u64;
            if have > metadata.size {
                drop(remove(partial));
                return Err(self.distrusted(format!("more than the {} bytes that were announced", metadata.size)));
            }
            file.write_all(&buffer[..read]).map_err(|e| self.cannot_write(partial, &e, metadata.size))?;
            self.client.progress.at(have);
        }
        file.sync_all().map_err(|e| self.cannot_write(partial, &e, metadata.size))?;
        Ok(Transfer::Complete)
    }

    fn open(&self, partial: &Path) -> Result<File> {
        File::options().append(true).create(true).open(partial).map_err(|e| Error::io("write", partial, &e))
    }

    fn cannot_write(&self, partial: &Path, error: &std::io::Error, size: u64) -> Error {
        let reason = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                format!("{error}; {} has {size} bytes. Make room, or move the cache with HF_HUB_CACHE", self.what())
            }
            _ => error.to_string(),
        };
        Error::Io { action: "write", path: partial.to_owned(), reason }
    }

    fn check_range(&self, response: &Response<Body>, start: u64, size: u64) -> Result<()> {
        let range = text(response.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
        if range == format!("bytes {start}-{}/{size}", size - 1) {
            return Ok(());
        }
        Err(self.distrusted(format!("bytes from {start} of {size} were asked for, and `{range}` was sent")))
    }
}

/// Ends what progress shows, however the transfer ends.
struct Shown<'a>(&'a Client);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.progress.end();
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A name that stays in the folder of blobs.
fn is_blob_name(hash: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=128).contains(&hash.len()) && hash.chars().all(plain)
}

fn is_whole(blob: &Path, size: u64) -> bool {
    blob.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, &error)),
        _ => Ok(()),
    }
}

/// A path in an address.
fn encode(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Whether an answer names a commit that can name a folder.
pub(crate) fn checked_commit(commit: &str, what: &str) -> Result<()> {
    if is_commit(commit) {
        return Ok(());
    }
    Err(Error::Distrusted { what: what.to_owned(), reason: format!("`{}` is not a commit", commit.escape_default()) })
}
