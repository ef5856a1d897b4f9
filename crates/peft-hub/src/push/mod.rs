//! Publishing an adapter.

mod large;

use crate::client::{Call, Payload};
use crate::digest::sha256;
use crate::{Error, Hub, ModelCard, RepoRef, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use large::LargeFile;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use ureq::http::{Method, StatusCode};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Tensors without what follows from the base model.
const COMPACT: &str = "adapter_compact.safetensors";
const CARD: &str = "README.md";
/// How much of a file the Hub looks at to tell how to store it.
const SAMPLE: u64 = 512;

/// How to push: publicly, with no README.md but that of the folder, unless said otherwise.
#[derive(Clone, Debug)]
pub struct PushOptions {
    private: bool,
    message: String,
    card: Option<ModelCard>,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { private: false, message: "Upload adapter".to_owned(), card: None }
    }
}

impl PushOptions {
    /// Whether a repository that is made is private; one that exists stays as it is.
    #[must_use]
    pub fn private(self, private: bool) -> Self {
        Self { private, ..self }
    }

    /// The first line of the commit's message.
    #[must_use]
    pub fn message(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// The README.md where the folder has none.
    #[must_use]
    pub fn card(self, card: ModelCard) -> Self {
        Self { card: Some(card), ..self }
    }
}

/// What a push made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pushed {
    /// The repository's page.
    pub url: String,
    /// The commit's hash.
    pub commit: String,
    /// The files that it put there.
    pub files: Vec<String>,
}

/// A file to push.
struct Upload {
    name: &'static str,
    content: Content,
}

enum Content {
    Text(String),
    File { path: PathBuf, size: u64 },
}

/// What the Hub says of a commit.
#[derive(Deserialize)]
struct Commit {
    #[serde(rename = "commitOid")]
    oid: String,
}

impl Hub {
    /// Publishes the adapter of a folder: its config, its tensors, and a README.md. The repository is made if need be; all files
    /// come in one commit, or none does.
    ///
    /// # Errors
    /// [`Error::NoToken`] without a token, [`Error::Unfit`] when the folder is not a PEFT adapter, [`Error::Offline`] in offline
    /// mode, and whatever the Hub has against it.
    pub fn push(&self, folder: impl AsRef<Path>, repo: &str, options: &PushOptions) -> Result<Pushed> {
        let repo: RepoRef = repo.parse()?;
        let what = format!("pushing to {repo}");
        if !repo.id.contains('/') || repo.subfolder.is_some() {
            return Err(Error::Source {
                text: repo.to_string(),
                reason: "push to user/name or user/name@branch".to_owned(),
            });
        }
        if self.settings().offline {
            return Err(Error::Refused { what, status: 0, reason: "HF_HUB_OFFLINE forbids it".to_owned() });
        }
        if self.settings().token.is_none() {
            return Err(Error::NoToken { what });
        }
        let uploads = gather(folder.as_ref(), &repo, options)?;
        self.create(&repo, options.private)?;
        let large = self.sort_out(&repo, &uploads)?;
        let mut hashes = BTreeMap::new();
        for upload in &uploads {
            if let Content::File { path, size } = &upload.content
                && large.iter().any(|name| name == upload.name)
            {
                let sha256 = sha256(path).map_err(|e| Error::io("read", path, &e))?;
                let file = LargeFile { path, size: *size, sha256: &sha256, what: upload.name };
                self.client.send_large(&repo, &file)?;
                hashes.insert(upload.name, sha256);
            }
        }
        let commit = self.commit(&repo, &uploads, &hashes, &options.message)?;
        let url = format!("{}/{}", self.settings().endpoint, repo.id);
        Ok(Pushed { url, commit: commit.oid, files: uploads.iter().map(|upload| upload.name.to_owned()).collect() })
    }

    fn post(&self, path: &str, what: impl Into<String>, body: &Value) -> Call {
        let mut call = self.client.call(Method::POST, path, what);
        call.headers.push(("content-type", "application/json".to_owned()));
        call.payload = Payload::Bytes(body.to_string().into_bytes());
        call
    }

    fn create(&self, repo: &RepoRef, private: bool) -> Result<()> {
        let (owner, name) = repo.id.split_once('/').unwrap_or_default();
        let body = json!({ "name": name, "organization": owner, "type": "model", "private": private });
        let call = self.post("api/repos/create", format!("making the repository {}", repo.id), &body);
        let response = self.client.send(&call)?;
        match response.status() {
            // It exists already, perhaps since the attempt before this one.
            StatusCode::CONFLICT => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.client.refusal(&call, response)),
        }
    }

    /// Which files the Hub wants as large ones.
    fn sort_out(&self, repo: &RepoRef, uploads: &[Upload]) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<Sorted>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Sorted {
            path: String,
            upload_mode: String,
        }
        let files = uploads.iter().map(|upload| {
            let (sample, size) = upload.sample()?;
            Ok(json!({ "path": upload.name, "size": size, "sample": STANDARD.encode(sample) }))
        });
        let body = json!({ "files": files.collect::<Result<Vec<_>>>()? });
        let path = format!("api/models/{}/preupload/{}", repo.id, branch(repo));
        let answer: Answer = self.client.json(&self.post(&path, repo.to_string(), &body))?;
        Ok(answer.files.into_iter().filter(|file| file.upload_mode == "lfs").map(|file| file.path).collect())
    }

    fn commit(
        &self,
        repo: &RepoRef,
        uploads: &[Upload],
        large: &BTreeMap<&str, String>,
        message: &str,
    ) -> Result<Commit> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        for upload in uploads {
            lines.push(match large.get(upload.name) {
                Some(oid) => {
                    let value = json!({ "path": upload.name, "algo": "sha256", "oid": oid, "size": upload.size() });
                    json!({ "key": "lfsFile", "value": value })
                }
                None => {
                    let content = STANDARD.encode(upload.bytes()?);
                    json!({ "key": "file", "value": { "path": upload.name, "content": content, "encoding": "base64" } })
                }
            });
        }
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = format!("api/models/{}/commit/{}", repo.id, branch(repo));
        let mut call = self.client.call(Method::POST, &path, format!("committing to {repo}"));
        call.headers.push(("content-type", "application/x-ndjson".to_owned()));
        call.payload = Payload::Bytes(lines.into_bytes());
        // It may have been made although the answer was lost; a second one would be empty, but a commit nevertheless.
        call.repeatable = false;
        self.client.json(&call)
    }
}

/// The files of an adapter folder that belong on the Hub.
fn gather(folder: &Path, repo: &RepoRef, options: &PushOptions) -> Result<Vec<Upload>> {
    let unfit = |reason: &str| Error::Unfit { repo: folder.display().to_string(), reason: reason.to_owned() };
    if !folder.is_dir() {
        return Err(unfit("no such folder"));
    }
    let mut uploads = vec![];
    for name in [CONFIG, WEIGHTS] {
        let path = folder.join(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                uploads.push(Upload { name, content: Content::File { path, size: metadata.len() } });
            }
            _ if name == WEIGHTS && folder.join("adapter_model.bin").exists() => {
                return Err(unfit("its tensors are a pickle; load it and save it again, then push that"));
            }
            _ if name == WEIGHTS && folder.join(COMPACT).exists() => {
                return Err(unfit(
                    "it is a compact checkpoint, which PEFT cannot read; convert it with --to peft, then push that",
                ));
            }
            _ => return Err(unfit(&format!("it has no {name}, so it is not an adapter"))),
        }
    }
    let own_card = folder.join(CARD);
    if own_card.is_file() {
        let size = fs::metadata(&own_card).map_err(|e| Error::io("read", &own_card, &e))?.len();
        uploads.push(Upload { name: CARD, content: Content::File { path: own_card, size } });
    } else if let Some(card) = &options.card {
        uploads.push(Upload { name: CARD, content: Content::Text(card.render(&repo.id)) });
    }
    Ok(uploads)
}

fn branch(repo: &RepoRef) -> String {
    repo.revision.replace('/', "%2F")
}

impl Upload {
    fn size(&self) -> u64 {
        match &self.content {
            Content::Text(text) => text.len() as u64,
            Content::File { size, .. } => *size,
        }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        match &self.content {
            Content::Text(text) => Ok(text.clone().into_bytes()),
            Content::File { path, .. } => fs::read(path).map_err(|e| Error::io("read", path, &e)),
        }
    }

    fn sample(&self) -> Result<(Vec<u8>, u64)> {
        let mut sample = vec![];
        match &self.content {
            Content::Text(text) => sample.extend(text.bytes().take(SAMPLE as usize)),
            Content::File { path, .. } => {
                let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
                file.take(SAMPLE).read_to_end(&mut sample).map_err(|e| Error::io("read", path, &e))?;
            }
        }
        Ok((sample, self.size()))
    }
}
