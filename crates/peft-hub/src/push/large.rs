//! Large files: git's large file storage, in one piece or in the parts that the Hub asks for.

use crate::client::{Call, Client, Payload};
use crate::{Error, RepoRef, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use ureq::http::Method;
use ureq::http::header::ETAG;

const LFS_JSON: &str = "application/vnd.git-lfs+json";
/// What addresses begin with that the Hub hands out, wherever it was asked.
const PUBLIC: &str = "https://huggingface.co/";

/// A file to send.
pub(super) struct LargeFile<'a> {
    pub(super) path: &'a Path,
    pub(super) size: u64,
    pub(super) sha256: &'a str,
    pub(super) what: &'a str,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    error: Option<Refusal>,
    /// None when the Hub has the file.
    actions: Option<Actions>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Action,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

impl Client {
    /// Sends a file to where the Hub wants it, unless it has it.
    pub(super) fn send_large(&self, repo: &RepoRef, file: &LargeFile<'_>) -> Result<()> {
        let asked = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "objects": [{ "oid": file.sha256, "size": file.size }],
        });
        let path = format!("{}.git/info/lfs/objects/batch", repo.id);
        let url = format!("{}/{path}", self.settings.endpoint);
        let batch: Batch = self.json(&self.lfs(&url, file, &asked))?;
        let Some(object) = batch.objects.into_iter().next() else {
            return Err(file.distrusted("the Hub does not say where to send it"));
        };
        if let Some(Refusal { message }) = object.error {
            return Err(Error::Refused { what: format!("sending {}", file.what), status: 0, reason: message });
        }
        let Some(actions) = object.actions else { return Ok(()) };
        self.progress.begin(file.what, 0, file.size);
        let sent = self.send_where_asked(file, &actions.upload);
        self.progress.end();
        sent?;
        if let Some(verify) = actions.verify {
            let body = json!({ "oid": file.sha256, "size": file.size });
            self.succeed(&self.lfs(&self.own(&verify.href), file, &body))?;
        }
        Ok(())
    }

    fn send_where_asked(&self, file: &LargeFile<'_>, upload: &Action) -> Result<()> {
        let Some(part_size) = upload.header.get("chunk_size") else {
            self.put(file, &upload.href, 0, file.size)?;
            return Ok(());
        };
        let digits = part_size.as_str().map_or_else(|| part_size.to_string(), str::to_owned);
        let part_size = digits.parse().ok().filter(|size| *size > 0);
        let part_size: u64 = part_size.ok_or_else(|| file.distrusted("the Hub asks for parts of no size"))?;
        let mut parts: Vec<(u64, &str)> =
            upload.header.iter().filter_map(|(number, url)| Some((number.parse().ok()?, url.as_str()?))).collect();
        parts.sort_unstable();
        if parts.len() as u64 != file.size.div_ceil(part_size) {
            return Err(file.distrusted("the Hub asks for parts that do not add up to the file"));
        }
        let mut sent = vec![];
        for (i, (_, url)) in (0u64..).zip(&parts) {
            let start = i * part_size;
            let etag = self.put(file, url, start, part_size.min(file.size - start))?;
            let etag = etag.ok_or_else(|| file.distrusted("a part was taken without a receipt"))?;
            sent.push(json!({ "partNumber": i + 1, "etag": etag }));
        }
        let body = json!({ "oid": file.sha256, "parts": sent });
        self.succeed(&self.lfs(&self.own(&upload.href), file, &body))?;
        Ok(())
    }

    /// Sends a part of the file and returns what it was called there.
    fn put(&self, file: &LargeFile<'_>, url: &str, start: u64, length: u64) -> Result<Option<String>> {
        let mut call = self.call(Method::PUT, "", format!("sending {}", file.what));
        url.clone_into(&mut call.url);
        call.payload = Payload::File { path: file.path.to_owned(), start, length };
        let response = self.succeed(&call)?;
        self.progress.at(start + length);
        Ok(response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned))
    }

    fn lfs(&self, url: &str, file: &LargeFile<'_>, body: &Value) -> Call {
        let mut call = self.call(Method::POST, "", format!("sending {}", file.what));
        url.clone_into(&mut call.url);
        call.headers.push(("accept", LFS_JSON.to_owned()));
        call.headers.push(("content-type", LFS_JSON.to_owned()));
        call.payload = Payload::Bytes(body.to_string().into_bytes());
        call
    }

    /// An address of the Hub's by way of the endpoint in use.
    fn own(&self, href: &str) -> String {
        match href.strip_prefix(PUBLIC) {
            Some(path) => format!("{}/{path}", self.settings.endpoint),
            None => href.to_owned(),
        }
    }
}

impl LargeFile<'_> {
    fn distrusted(&self, reason: &str) -> Error {
        Error::Distrusted { what: format!("sending {}", self.what), reason: reason.to_owned() }
    }
}
