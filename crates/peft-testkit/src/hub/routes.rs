//! Which request gets which answer.

use super::http::{Request, Response};
use super::repo::{Repo, Stored};
use super::{Port, Shared, State, uploads};
use serde_json::{Value, json};

pub(super) fn answer(request: &Request, state: &mut State, shared: &Shared) -> Response {
    let path = request.resource().to_owned();
    match (request.port, request.method.as_str()) {
        (Port::Storage, "GET" | "HEAD") => stored(&path, state),
        (Port::Storage, "PUT") => uploads::put(request, state),
        (Port::Hub, "GET" | "HEAD") => read(request, &path, state, shared),
        (Port::Hub, "POST") => uploads::post(request, &path, state, shared),
        _ => Response::text(405, "no such method"),
    }
}

/// Splits `{repo}{middle}{rest}` where the repository's name has one or two parts.
pub(super) fn around<'a>(path: &'a str, middle: &str) -> Option<(&'a str, &'a str)> {
    let (repo, rest) = path.split_once(middle)?;
    Some((repo.trim_start_matches('/'), rest))
}

pub(super) fn error(status: u16, code: &str, message: &str) -> Response {
    Response::text(status, &json!({ "error": message }).to_string())
        .with("x-error-code", code)
        .with("x-error-message", message)
        .with("content-type", "application/json")
}

/// Why a repository cannot be seen, or else the repository.
pub(super) fn visible<'a>(name: &str, request: &Request, state: &'a State) -> Result<&'a Repo, Response> {
    let missing = || error(if request.token().is_some() { 404 } else { 401 }, "RepoNotFound", "Repository not found");
    if let (Some(sent), Some(valid)) = (request.token(), &state.token)
        && sent != valid
    {
        return Err(Response::text(401, r#"{"error":"Invalid credentials in Authorization header"}"#));
    }
    let repo = state.repos.get(name).ok_or_else(missing)?;
    if repo.private && request.token() != state.token.as_deref() { Err(missing()) } else { Ok(repo) }
}

fn read(request: &Request, path: &str, state: &State, shared: &Shared) -> Response {
    let api = path.strip_prefix("/api/models/");
    let (name, revision, file) = match api {
        Some(rest) => match around(rest, "/revision/").or_else(|| around(rest, "/tree/")) {
            Some((name, revision)) => (name, revision, None),
            None => (rest, "main", None),
        },
        None => match around(path, "/resolve/").and_then(|(name, rest)| Some((name, rest.split_once('/')?))) {
            Some((name, (revision, file))) => (name, revision, Some(file)),
            None => return Response::text(404, "no such page"),
        },
    };
    if let Some(new) = state.renamed.get(name) {
        return Response::text(307, "").with("location", &path.replacen(name, new, 1));
    }
    let repo = match visible(name, request, state) {
        Ok(repo) => repo,
        Err(response) => return response,
    };
    let Some(commit) = repo.resolve(&revision.replace("%2F", "/")) else {
        return error(404, "RevisionNotFound", "Invalid rev id");
    };
    let Some(file) = file else { return listing(path, name, &commit, repo) };
    if repo.gated {
        return error(403, "GatedRepo", "Access to this model is restricted");
    }
    let Some(stored) = repo.file(&commit, file) else {
        return error(404, "EntryNotFound", "Entry not found").with("x-repo-commit", &commit);
    };
    let response = match stored {
        Stored::Regular(bytes) => {
            let mut response = Response::text(200, "").with("etag", &format!("\"{}\"", stored.git_hash()));
            response.body.clone_from(bytes);
            response.ranges = true;
            // What a client learns from HEAD alone.
            if request.method == "HEAD" { response.with("content-length", &bytes.len().to_string()) } else { response }
        }
        Stored::Large { sha256, size } => Response::text(302, "")
            .with("location", &format!("http://{}/{sha256}?X-Amz-Signature=signed", shared.storage))
            .with("x-linked-etag", &format!("\"{sha256}\""))
            .with("x-linked-size", &size.to_string())
            .with("etag", &format!("\"{}\"", stored.git_hash())),
    };
    response.with("x-repo-commit", &commit)
}

fn listing(path: &str, name: &str, commit: &str, repo: &Repo) -> Response {
    let tree = repo.tree(commit).into_iter().flatten();
    if path.contains("/tree/") {
        return Response::json(&tree.map(|(path, file)| entry(path, file)).collect());
    }
    let siblings: Vec<Value> = tree.map(|(path, _)| json!({ "rfilename": path })).collect();
    Response::json(&json!({
        "id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated, "siblings": siblings,
        "tags": [], "downloads": 0, "likes": 0,
    }))
}

fn entry(path: &str, file: &Stored) -> Value {
    let mut entry = json!({ "type": "file", "path": path, "size": file.size(), "oid": file.git_hash() });
    if let Stored::Large { sha256, size } = file {
        entry["lfs"] = json!({ "oid": sha256, "size": size, "pointerSize": 130 });
    }
    entry
}

fn stored(path: &str, state: &State) -> Response {
    let Some(bytes) = state.large.get(path.trim_start_matches('/')) else { return Response::text(403, "expired") };
    let mut response = Response::text(200, "");
    response.body.clone_from(bytes);
    response.ranges = true;
    response
}
