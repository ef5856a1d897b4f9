//! What a push sends.

use super::http::{Request, Response};
use super::repo::{Stored, sha256};
use super::routes::{around, error, visible};
use super::{LARGE, Shared, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(super) fn post(request: &Request, path: &str, state: &mut State, shared: &Shared) -> Response {
    if request.token().is_none() || request.token() != state.token.as_deref() {
        return error(401, "", "Invalid username or password.");
    }
    if path == "/api/repos/create" {
        return create(&request.json(), state);
    }
    if path.ends_with(".git/info/lfs/objects/batch") {
        return batch(&request.json(), state, shared);
    }
    if let Some(oid) = path.strip_prefix("/lfs/complete/") {
        return complete(oid, &request.json(), state);
    }
    if let Some(oid) = path.strip_prefix("/lfs/verify/") {
        let whole = state.large.contains_key(oid);
        return Response::text(if whole { 200 } else { 404 }, "{}");
    }
    let Some(api) = path.strip_prefix("/api/models/") else { return Response::text(404, "no such page") };
    if let Some((name, _)) = around(api, "/preupload/") {
        return visible(name, request, state).map_or_else(|e| e, |_| preupload(&request.json()));
    }
    if let Some((name, revision)) = around(api, "/commit/") {
        return commit(name, revision, request, state);
    }
    Response::text(404, "no such page")
}

fn create(asked: &Value, state: &mut State) -> Response {
    let part = |key: &str| asked[key].as_str().map(str::to_owned);
    let name = part("name").unwrap_or_default();
    let name = part("organization").map_or_else(|| format!("me/{name}"), |owner| format!("{owner}/{name}"));
    if state.repos.contains_key(&name) {
        return error(409, "", "You already created this model repo");
    }
    state.repos.entry(name.clone()).or_default().private = asked["private"] == true;
    Response::json(&json!({ "url": format!("https://hub.invalid/{name}"), "name": name }))
}

fn preupload(asked: &Value) -> Response {
    let files = asked["files"].as_array().cloned().unwrap_or_default();
    let mode = |file: &Value| {
        let path = file["path"].as_str().unwrap_or_default();
        let small = [".json", ".md", ".jinja"].iter().any(|end| path.ends_with(end));
        let large = !small && file["size"].as_u64().is_some_and(|size| size > LARGE as u64);
        let mode = if large { "lfs" } else { "regular" };
        json!({ "path": path, "uploadMode": mode, "shouldIgnore": false })
    };
    Response::json(&json!({ "files": files.iter().map(mode).collect::<Vec<_>>() }))
}

fn batch(asked: &Value, state: &State, shared: &Shared) -> Response {
    let objects = asked["objects"].as_array().cloned().unwrap_or_default();
    let answer = |object: &Value| {
        let oid = object["oid"].as_str().unwrap_or_default();
        let size = usize::try_from(object["size"].as_u64().unwrap_or_default()).unwrap_or_default();
        if state.large.contains_key(oid) {
            return json!({ "oid": oid, "size": size });
        }
        let storage = |part: usize| format!("http://{}/{oid}?partNumber={part}&X-Amz-Signature=signed", shared.storage);
        let hub = |what: &str| format!("http://{}/lfs/{what}/{oid}", shared.address);
        let upload = match state.part_size {
            Some(part_size) if size > part_size => {
                let mut header = json!({ "chunk_size": part_size.to_string() });
                for part in 1..=size.div_ceil(part_size) {
                    header[format!("{part:05}")] = storage(part).into();
                }
                json!({ "href": hub("complete"), "header": header })
            }
            _ => json!({ "href": storage(0) }),
        };
        json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": { "href": hub("verify") } } })
    };
    Response::json(&json!({ "transfer": if state.part_size.is_some() { "multipart" } else { "basic" },
                 "objects": objects.iter().map(answer).collect::<Vec<_>>() }))
}

/// A large file or a part of one. A token has no business here: the address is signed.
pub(super) fn put(request: &Request, state: &mut State) -> Response {
    if request.header("authorization").is_some() {
        return Response::text(400, "Only one auth mechanism allowed");
    }
    let oid = request.resource().trim_start_matches('/').to_owned();
    let part = request.path.split("partNumber=").nth(1).and_then(|rest| rest.split('&').next()?.parse().ok());
    match part {
        Some(0) | None if sha256(&request.body) != oid => return Response::text(400, "not what was announced"),
        Some(0) | None => {
            state.large.insert(oid, request.body.clone());
        }
        Some(part) => {
            state.parts.insert((oid, part), request.body.clone());
        }
    }
    Response::text(200, "").with("etag", &format!("\"{}\"", part.unwrap_or_default()))
}

fn complete(oid: &str, asked: &Value, state: &mut State) -> Response {
    let mut whole = vec![];
    for (i, part) in asked["parts"].as_array().into_iter().flatten().enumerate() {
        let named = part["partNumber"] == i + 1 && part["etag"] == format!("\"{}\"", i + 1);
        match state.parts.remove(&(oid.to_owned(), i + 1)) {
            Some(bytes) if named => whole.extend_from_slice(&bytes),
            _ => return Response::text(400, "a part is missing"),
        }
    }
    if sha256(&whole) != oid {
        return Response::text(400, "not what was announced");
    }
    state.large.insert(oid.to_owned(), whole);
    Response::text(200, "{}")
}

fn commit(name: &str, revision: &str, request: &Request, state: &mut State) -> Response {
    if let Err(response) = visible(name, request, state) {
        return response;
    }
    let mut files = vec![];
    for line in request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return Response::text(400, "not JSON lines") };
        let value = &line["value"];
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") if text("summary").is_empty() => return Response::text(400, "a commit needs a summary"),
            Some("file") => match STANDARD.decode(text("content")) {
                Ok(bytes) => files.push((text("path"), Stored::Regular(bytes))),
                Err(_) => return Response::text(400, "not base64"),
            },
            Some("lfsFile") => {
                let Some(bytes) = state.large.get(&text("oid")) else { return Response::text(400, "not uploaded") };
                files.push((text("path"), Stored::Large { sha256: text("oid"), size: bytes.len() }));
            }
            _ => {}
        }
    }
    let bad = files.iter().find(|(path, _)| path == "README.md").and_then(|(_, file)| bad_card(file));
    if let Some(message) = bad {
        return error(400, "", message);
    }
    let repo = state.repos.entry(name.to_owned()).or_default();
    let commit = repo.commit(&revision.replace("%2F", "/"), files);
    Response::json(&json!({
        "success": true, "commitOid": commit, "commitUrl": format!("http://hub/{name}/commit/{commit}"),
        "hookOutput": "",
    }))
}

/// What the Hub has against a model card.
fn bad_card(file: &Stored) -> Option<&'static str> {
    let Stored::Regular(bytes) = file else { return Some("README.md must be text") };
    let text = String::from_utf8_lossy(bytes);
    let metadata = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n"))?.0;
    let base = metadata.lines().find_map(|line| line.strip_prefix("base_model: "))?;
    let parts = base.trim_matches('"').split('/').count();
    (parts > 2).then_some("\"base_model\" with value is not valid. Use a model id from https://hf.co/models.")
}
