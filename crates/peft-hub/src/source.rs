//! Names of models and adapters: a local folder, or a repository on the Hub.

use crate::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const MAIN: &str = "main";
const SCHEME: &str = "hf://";
/// What `huggingface_hub` allows.
const LONGEST_NAME: usize = 96;

/// Where a model or adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder.
    Folder(PathBuf),
    /// A repository.
    Repo(RepoRef),
}

/// A repository on the Hub at a revision, and perhaps a folder in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RepoRef {
    /// `user/name`; a few old models have a name alone.
    pub id: String,
    /// A branch, tag, commit or `refs/pr/N`; `main` where none was given.
    pub revision: String,
    /// The folder in the repository.
    pub subfolder: Option<String>,
}

impl Source {
    /// Understands `user/name`, `user/name@revision`, `user/name/sub/folder`, the same with `hf://` before it, the address of a
    /// repository's page, or a folder. A folder that exists wins over a repository of the same name.
    ///
    /// # Errors
    /// [`Error::Source`] when the text is clearly a path but there is no such folder, or when it cannot be the name of a
    /// repository either.
    pub fn parse(text: &str) -> Result<Self> {
        let folder = Path::new(text);
        if folder.is_dir() {
            return Ok(Self::Folder(folder.to_owned()));
        }
        let error = |reason: String| Error::Source { text: text.to_owned(), reason };
        if folder.exists() {
            return Err(error("this is a file; give the folder that it is in".to_owned()));
        }
        if is_path(text) {
            return Err(error("no such folder".to_owned()));
        }
        text.parse().map(Self::Repo).map_err(|e| match e {
            Error::Source { reason, .. } => error(format!(
                "no such folder, and not the name of a repository on the Hub such as user/name or user/name@revision: {reason}"
            )),
            other => other,
        })
    }
}

/// Whether a text can only mean a path.
fn is_path(text: &str) -> bool {
    let absolute = Path::new(text).is_absolute();
    let relative = [".", ".."].contains(&text) || ["./", "../", "~"].iter().any(|start| text.starts_with(start));
    absolute || relative || text.contains('\\') || text.ends_with('/')
}

impl RepoRef {
    /// A repository at its main branch.
    ///
    /// # Errors
    /// [`Error::Source`] when that cannot be the name of a repository.
    pub fn new(id: &str) -> Result<Self> {
        check_id(id)?;
        Ok(Self { id: id.to_owned(), revision: MAIN.to_owned(), subfolder: None })
    }

    /// The same at another revision.
    ///
    /// # Errors
    /// [`Error::Source`] when that cannot be a revision.
    pub fn at(mut self, revision: &str) -> Result<Self> {
        check_revision(revision)?;
        revision.clone_into(&mut self.revision);
        Ok(self)
    }

    /// Whether the revision is a commit's hash, which never means another commit.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl FromStr for RepoRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let page = page_path(text);
        let text = page.as_deref().unwrap_or(text.strip_prefix(SCHEME).unwrap_or(text));
        let text = text.trim_end_matches('/');
        let (id, revision, subfolder) = match text.split_once('@') {
            Some((id, rest)) => {
                let (revision, subfolder) = split_revision(rest);
                (id.to_owned(), revision.replace("%2F", "/"), subfolder)
            }
            None => {
                let mut parts = text.splitn(3, '/');
                let id = [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join("/");
                (id, MAIN.to_owned(), parts.next())
            }
        };
        let mut repo = Self::new(&id)?.at(&revision)?;
        if let Some(subfolder) = subfolder {
            check_file_name(subfolder).map_err(|reason| Error::Source { text: subfolder.to_owned(), reason })?;
            repo.subfolder = Some(subfolder.to_owned());
        }
        Ok(repo)
    }
}

impl fmt::Display for RepoRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.subfolder.iter().try_for_each(|subfolder| write!(f, "/{subfolder}"))
    }
}

/// What a browser shows, as `user/name@revision/folder`.
fn page_path(text: &str) -> Option<String> {
    let path = ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/"]
        .iter()
        .find_map(|host| text.strip_prefix(host))?;
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    Some(match path.split_once("/tree/") {
        Some((id, rest)) => format!("{id}@{rest}"),
        None => path.to_owned(),
    })
}

/// The revision before a folder. Only those of pull requests and conversions hold slashes; others are written with `%2F`.
fn split_revision(text: &str) -> (&str, Option<&str>) {
    let parts = if text.starts_with("refs/") { 3 } else { 1 };
    match text.match_indices('/').nth(parts - 1) {
        Some((at, _)) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// The rules of `huggingface_hub`.
fn check_id(id: &str) -> Result<()> {
    let error = |reason: &str| Err(Error::Source { text: id.to_owned(), reason: reason.to_owned() });
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
        return error("it must be user/name");
    }
    if parts.iter().any(|part| part.len() > LONGEST_NAME) {
        return error("user and name have at most 96 characters each");
    }
    if !id.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
        return error("only letters, digits, `-`, `_` and `.` are allowed in user and name");
    }
    let edge = |part: &str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
    if parts.iter().any(|part| edge(part)) || id.contains("--") || id.contains("..") || id.ends_with(".git") {
        return error("user and name do not begin or end with `-` or `.`, hold `--` or `..`, or end in `.git`");
    }
    Ok(())
}

/// What may stand in an address and in a path under `refs`.
fn check_revision(revision: &str) -> Result<()> {
    let reason = match check_file_name(revision) {
        Err(_) => "not a revision: it must be a branch, a tag or a commit",
        Ok(()) if revision.chars().any(|c| c.is_whitespace() || "?#%~^:*[".contains(c)) => {
            "not a revision: it holds characters that no branch, tag or commit has"
        }
        Ok(()) => return Ok(()),
    };
    Err(Error::Source { text: revision.to_owned(), reason: reason.to_owned() })
}

/// A whole commit hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a file of a repository can be put below a folder without leaving it, on any system.
pub(crate) fn check_file_name(name: &str) -> Result<(), String> {
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    let reserved = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
    if name.split('/').any(bad) || name.chars().any(reserved) || name.len() > 1024 {
        return Err(format!("`{}` is not a path inside a repository", name.escape_default()));
    }
    Ok(())
}
