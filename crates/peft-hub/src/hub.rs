//! Fetching models and adapters.

use crate::cache::RepoCache;
use crate::client::Client;
use crate::download::{Remote, checked_commit};
use crate::source::check_file_name;
use crate::wanted::{Part, Wanted, is_index, shards};
use crate::{Error, Progress, RepoRef, Result, Settings, Silent, Source};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ureq::http::Method;

/// Models and adapters, from folders or from the Hub.
///
/// ```no_run
/// use peft_hub::Hub;
///
/// let hub = Hub::from_env()?;
/// let adapter = hub.adapter("user/adapter@main")?;
/// println!("{} at {:?}", adapter.path().display(), adapter.origin().map(|origin| &origin.commit));
/// # Ok::<(), peft_hub::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hub {
    pub(crate) client: Client,
}

/// A folder with what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    path: PathBuf,
    origin: Option<Origin>,
}

/// Where on the Hub the files of a folder come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The repository and revision that were asked for.
    pub repo: RepoRef,
    /// The hash of the commit that the revision was.
    pub commit: String,
}

/// What the Hub says of a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// A hub with these settings that reports to nobody.
    pub fn new(settings: Settings) -> Self {
        Self { client: Client::new(settings, Arc::new(Silent)) }
    }

    /// A hub with the settings of the environment.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(Settings::from_env()?))
    }

    /// Reports transfers to `progress`.
    #[must_use]
    pub fn with_progress(self, progress: impl Progress + 'static) -> Self {
        Self { client: Client::new(self.client.settings, Arc::new(progress)) }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.client.settings
    }

    /// The folder of an adapter, fetched if need be.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn adapter(&self, source: &str) -> Result<Snapshot> {
        self.get(source, Part::Adapter)
    }

    /// The folder of a model with all that running it takes, fetched if need be.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn model(&self, source: &str) -> Result<Snapshot> {
        self.get(source, Part::Model)
    }

    /// The folder that a text names, or the part of the repository that it names, fetched if need be.
    ///
    /// # Errors
    /// As [`Source::parse`] and [`Hub::fetch`].
    pub fn get(&self, source: &str, part: Part) -> Result<Snapshot> {
        match Source::parse(source)? {
            Source::Folder(path) => Ok(Snapshot::of_folder(path)),
            Source::Repo(repo) => self.fetch(&repo, part),
        }
    }

    /// A part of a repository, from the cache as far as it is there.
    ///
    /// A commit that is in the cache needs no network. Any other revision is looked up, with one request; if the Hub cannot be
    /// reached then, the commit it was last time serves.
    ///
    /// # Errors
    /// When the Hub refuses or cannot be reached, the repository lacks what is wanted, what is sent does not match its hash, or the
    /// cache cannot be written. Whatever was there before is whole then, and an interrupted transfer goes on the next time.
    pub fn fetch(&self, repo: &RepoRef, part: Part) -> Result<Snapshot> {
        let fetch = Fetch { hub: self, repo, part, cache: RepoCache::new(&self.settings().cache, repo) };
        let (commit, fresh) = fetch.run()?;
        let path = repo.subfolder.iter().fold(fetch.cache.snapshot(&commit), |path, folder| path.join(folder));
        tracing::info!(repo = %repo, commit, path = %path.display(), "loaded from the Hub");
        if !repo.is_pinned() {
            let from = if fresh { "" } else { " (from the cache)" };
            self.client.progress.note(&format!("{repo} is at commit {commit}{from}"));
        }
        Ok(Snapshot { path, origin: Some(Origin { repo: repo.clone(), commit }) })
    }
}

/// One part of one repository on its way here.
struct Fetch<'a> {
    hub: &'a Hub,
    repo: &'a RepoRef,
    part: Part,
    cache: RepoCache,
}

impl Fetch<'_> {
    /// The commit, and whether it was looked up.
    fn run(&self) -> Result<(String, bool)> {
        let cached = self.cache.commit();
        if let Some(commit) = cached.as_ref().filter(|_| self.repo.is_pinned())
            && self.is_complete(commit, true)
        {
            return Ok((commit.clone(), false));
        }
        let usable = cached.filter(|commit| self.is_complete(commit, false));
        if self.hub.settings().offline {
            let what = format!("{} ({})", self.repo, self.part.describe());
            let cache = self.hub.settings().cache.clone();
            return usable.map(|commit| (commit, false)).ok_or(Error::Offline { what, cache });
        }
        let info = match (self.look_up(usable.is_some()), usable) {
            (Err(error), Some(commit)) if error.is_transient() => {
                let line = format!("{error}; going on with what is in the cache");
                tracing::warn!(line);
                self.hub.client.progress.note(&line);
                return Ok((commit, false));
            }
            (info, _) => info?,
        };
        self.fetch_all(&info)?;
        self.cache.remember(&info.sha)?;
        Ok((info.sha, true))
    }

    /// What the Hub says of the revision. With something to fall back on, a host that does not answer is not asked again.
    fn look_up(&self, fallback: bool) -> Result<Info> {
        let revision = self.repo.revision.replace('/', "%2F");
        let what = RepoRef { subfolder: None, ..self.repo.clone() }.to_string();
        let path = format!("api/models/{}/revision/{revision}", self.repo.id);
        let mut call = self.hub.client.call(Method::GET, &path, &*what);
        if fallback {
            call.attempts = 1;
        }
        let info: Info = self.hub.client.json(&call)?;
        checked_commit(&info.sha, &what)?;
        if self.repo.is_pinned() && info.sha != self.repo.revision {
            let reason = format!("the Hub answers with another commit, {}", info.sha);
            return Err(Error::Distrusted { what, reason });
        }
        if let Some(reason) = info.siblings.iter().find_map(|file| check_file_name(&file.rfilename).err()) {
            return Err(Error::Distrusted { what, reason });
        }
        Ok(info)
    }

    fn fetch_all(&self, info: &Info) -> Result<()> {
        let prefix = self.prefix();
        let below = |file: &'_ Sibling| file.rfilename.strip_prefix(&prefix).map(str::to_owned);
        let names: Vec<String> = info.siblings.iter().filter_map(below).collect();
        let set: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let shown: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.contains('/')).collect();
        if names.is_empty() && !prefix.is_empty() {
            let reason = format!("it has no folder `{}`", prefix.trim_end_matches('/'));
            return Err(Error::Unfit { repo: self.place(&info.sha), reason });
        }
        let wanted = self.part.of(&self.place(&info.sha), &|name| set.contains(name), &shown)?;
        for name in &wanted.needed {
            let path = self.remote(&info.sha, &format!("{prefix}{name}")).fetch()?;
            if is_index(name) {
                for shard in shards(&path)? {
                    self.remote(&info.sha, &format!("{prefix}{shard}")).fetch()?;
                }
            }
        }
        for name in &wanted.absent {
            self.cache.remember_absent(&info.sha, &format!("{prefix}{name}"));
        }
        Ok(())
    }

    /// Whether the cache holds all that is needed; if `certainly`, also every file that not all repositories have, or the knowledge
    /// that this one does not.
    fn is_complete(&self, commit: &str, certainly: bool) -> bool {
        let prefix = self.prefix();
        let has = |name: &str| self.cache.file(commit, &format!("{prefix}{name}")).is_some();
        let Ok(Wanted { needed, absent }) = self.part.of("", &has, &[]) else { return false };
        let known = |name: &String| self.cache.is_absent(commit, &format!("{prefix}{name}"));
        let with_shards = |name: &String| {
            !is_index(name)
                || shards(&self.cache.snapshot(commit).join(format!("{prefix}{name}")))
                    .is_ok_and(|shards| shards.iter().all(|shard| has(shard)))
        };
        needed.iter().all(with_shards) && (!certainly || absent.iter().all(known))
    }

    fn remote<'b>(&'b self, commit: &'b str, name: &'b str) -> Remote<'b> {
        Remote { client: &self.hub.client, cache: &self.cache, repo: self.repo, commit, name }
    }

    fn prefix(&self) -> String {
        self.repo.subfolder.as_ref().map(|folder| format!("{folder}/")).unwrap_or_default()
    }

    fn place(&self, commit: &str) -> String {
        if self.repo.is_pinned() { self.repo.to_string() } else { format!("{} (commit {commit})", self.repo) }
    }
}

impl Part {
    fn describe(self) -> &'static str {
        match self {
            Self::Adapter => "adapter_config.json and the adapter's tensors",
            Self::AdapterConfig => "adapter_config.json",
            Self::ModelConfig => "config.json",
            Self::Any => "an adapter or a model",
            Self::Model | Self::WholeModel => "config.json and the model's safetensors",
        }
    }
}

impl Snapshot {
    /// A folder that is here.
    pub fn of_folder(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), origin: None }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its files come from; none for a folder that was given.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// What to call it: the repository, or the folder.
    pub fn name(&self) -> String {
        self.origin.as_ref().map_or_else(|| self.path.display().to_string(), |origin| origin.repo.id.clone())
    }
}

impl AsRef<Path> for Snapshot {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}
