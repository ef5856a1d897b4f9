//! Servers and repositories that mean harm, or are broken as if they did.

use crate::support::{ADAPTER, MODEL, Place, assert_says, resolve, weights};
use peft_hub::Error;
use peft_testkit::hub::{Fault, sha256};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

fn assert_distrusted(place: &Place, says: &[&str]) {
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert!(matches!(error, Error::Distrusted { .. }), "{error:?}");
    assert_says(&error, says);
    // Nothing of it is called an adapter's weights.
    let snapshots = place.cached("models--user--adapter/snapshots");
    assert!(!snapshots.iter().any(|(name, _)| name.ends_with("safetensors")), "{snapshots:?}");
    assert!(place.hub_with(|settings| settings.offline = true).adapter(ADAPTER).is_err());
}

#[test]
fn a_wrong_hash_is_not_kept() {
    let large = format!("GET /{}", sha256(&weights()));
    let place = Place::new();
    place.server.plant(&large, 1, Fault::Corrupt);
    assert_distrusted(&place, &["adapter_model.safetensors of user/adapter", "hash", &sha256(&weights())]);
    assert!(place.cached("models--user--adapter/blobs").iter().all(|(name, _)| !name.contains(&sha256(&weights()))));
    place.hub().adapter(ADAPTER).unwrap();
    // Small files have git's hash.
    let place = Place::new();
    place.server.plant(&resolve(&place, "GET", "adapter_config.json"), 1, Fault::Corrupt);
    assert_distrusted(&place, &["adapter_config.json of user/adapter", "hash"]);
}

#[test]
fn lies_about_sizes_are_seen_before_anything_is_allocated() {
    let large = format!("GET /{}", sha256(&weights()));
    let head = |place: &Place, file| resolve(place, "HEAD", file);
    let header = |name: &str, value: &str| Fault::Header(name.to_owned(), Some(value.to_owned()));
    // Announced as shorter, as longer, and as larger than any disk.
    for (size, says) in
        [("5", "300000 bytes are offered where 5"), ("18446744073709551615", "300000 bytes are offered")]
    {
        let place = Place::new();
        place.server.plant(&head(&place, "adapter_model.safetensors"), 1, header("x-linked-size", size));
        assert_distrusted(&place, &[says]);
    }
    let place = Place::new();
    place.server.plant(&large, 1, header("content-length", "999999999999"));
    assert_distrusted(&place, &["999999999999 bytes are offered where 300000"]);
    // More than announced, without a length.
    let place = Place::new();
    place.server.plant(&large, 9, Fault::Body(vec![1; 400_000]));
    place.server.plant(&large, 9, Fault::Header("content-length".into(), None));
    assert_distrusted(&place, &["400000 bytes are offered where 300000"]);
    // A config of ten terabytes.
    let place = Place::new();
    place.server.plant(&head(&place, "adapter_config.json"), 1, header("content-length", "10000000000000"));
    assert_distrusted(&place, &["adapter_config.json", "claims to be 10000000000000 bytes"]);
    // No size at all.
    let place = Place::new();
    place.server.plant(&head(&place, "adapter_model.safetensors"), 1, Fault::Header("x-linked-size".into(), None));
    assert_distrusted(&place, &["does not say how long"]);
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    let names = ["../evil", "a/../../evil", "/etc/passwd", "..\\evil", "C:\\evil", "a//b", "a/./b", "nul\u{0}", ""];
    for name in names {
        let place = Place::new();
        let siblings = serde_json(&["adapter_config.json", "adapter_model.safetensors", name], &place.commit);
        place.server.plant("GET /api/models", 1, Fault::Body(siblings));
        assert_distrusted(&place, &["not a path inside a repository"]);
    }
    for etag in ["../../../evil", "..", "", "a/b", "\\evil"] {
        let place = Place::new();
        let fault = Fault::Header("etag".into(), Some(format!("\"{etag}\"")));
        place.server.plant(&resolve(&place, "HEAD", "adapter_config.json"), 1, fault);
        assert_distrusted(&place, &["ETag"]);
        assert!(!place.cache.path().parent().unwrap().join("evil").exists());
    }
    for commit in ["../../evil", "main", "", "ABCDEF"] {
        let place = Place::new();
        let body = serde_json(&["adapter_config.json", "adapter_model.safetensors"], commit);
        place.server.plant("GET /api/models", 1, Fault::Body(body));
        assert_distrusted(&place, &["is not a commit"]);
    }
}

#[test]
fn an_index_lists_files_beside_it_alone() {
    for shard in
        ["../../../../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "..\\x.safetensors"]
    {
        let place = Place::new();
        let index = format!("{{\"weight_map\": {{\"a\": {shard:?}}}}}");
        let files = [("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index.into_bytes())];
        place.server.commit(MODEL, "main", files);
        let error = place.hub().model(MODEL).unwrap_err();
        assert_says(&error, &["is not a safetensors file in the same folder", "model.safetensors.index.json"]);
    }
    let place = Place::new();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors.index.json", b"[1".to_vec())];
    place.server.commit(MODEL, "main", files);
    assert_says(&place.hub().model(MODEL).unwrap_err(), &["model.safetensors.index.json"]);
}

#[test]
#[cfg(unix)]
fn links_that_leave_the_cache_are_not_followed() {
    let place = Place::new();
    let snapshot = place.hub().adapter(ADAPTER).unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let config = snapshot.path().join("adapter_config.json");
    fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), &config).unwrap();
    assert!(place.hub_with(|settings| settings.offline = true).adapter(ADAPTER).is_err());
    place.hub().adapter(ADAPTER).unwrap();
    assert_eq!(fs::read(&config).unwrap(), br#"{"peft_type": "LORA"}"#, "it is put right");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn another_commit_than_was_asked_for_is_noticed() {
    let place = Place::new();
    let other = "0123456789012345678901234567890123456789";
    let fault = Fault::Header("x-repo-commit".into(), Some(other.into()));
    place.server.plant(&resolve(&place, "HEAD", "adapter_model.safetensors"), 1, fault);
    assert_distrusted(&place, &[&place.commit, other]);
    place.server.plant("GET /api/models", 1, Fault::Body(serde_json(&["adapter_config.json"], other)));
    let pinned = format!("{ADAPTER}@{}", place.commit);
    let fresh = Place::new();
    fresh.server.plant("GET /api/models", 1, Fault::Body(serde_json(&["adapter_config.json"], other)));
    assert_says(&fresh.hub().adapter(&pinned).unwrap_err(), &["another commit", other]);
}

#[test]
fn pages_that_are_not_the_hubs_are_refused() {
    for body in [&b"<html>log in to the network</html>"[..], b"", b"[]", b"{\"sha\": 5}", b"{\"siblings\": []}"] {
        let place = Place::new();
        place.server.plant("GET /api/models", 1, Fault::Body(body.to_vec()));
        assert_distrusted(&place, &[ADAPTER, "not what the Hub answers"]);
    }
    let place = Place::new();
    let long = [b"{\"sha\": \"".to_vec(), vec![b'a'; 33 << 20], b"\"}".to_vec()].concat();
    place.server.plant("GET /api/models", 1, Fault::Body(long));
    assert_distrusted(&place, &["too long"]);
    let place = Place::new();
    place.server.plant("HEAD /", 1, Fault::Header("etag".into(), None));
    assert_distrusted(&place, &["no ETag"]);
}

#[test]
fn a_head_without_end_is_given_up() {
    let place = Place::new();
    place.server.plant("GET /api/models", 5, Fault::EndlessHead(4 << 20));
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert_says(&error, &[ADAPTER]);
}

#[test]
fn redirects_in_circles_and_to_nowhere_end() {
    for (place_to, says) in [
        ("/user/adapter/resolve/loop", "redirect"),
        ("gopher://old.test/", "a redirect that leads nowhere"),
        ("//elsewhere.test/x", "a redirect that leads nowhere"),
    ] {
        let place = Place::new();
        place.server.plant("HEAD /", 99, Fault::Redirect(place_to.to_owned()));
        assert_distrusted(&place, &[says]);
    }
}

#[test]
fn a_transfer_that_answers_another_range_is_refused() {
    let large = format!("GET /{}", sha256(&weights()));
    let place = Place::new();
    place.server.plant(&large, 1, Fault::Truncate(100_000));
    let range = "bytes 200000-299999/300000";
    place.server.plant(&large, 1, Fault::Header("content-range".into(), Some(range.into())));
    assert_distrusted(&place, &["bytes from 100000 of 300000 were asked for", range]);
}

fn serde_json(names: &[&str], commit: &str) -> Vec<u8> {
    let siblings: Vec<String> = names.iter().map(|name| format!("{{\"rfilename\": {}}}", quoted(name))).collect();
    format!("{{\"sha\": {}, \"siblings\": [{}]}}", quoted(commit), siblings.join(",")).into_bytes()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('\u{0}', "\\u0000"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever a server answers, at any point, ends in files that are right or in an error, never in a panic, and outside the
    /// cache nothing is written.
    #[test]
    fn any_answer_is_survived(
        request in prop::sample::select(vec!["GET /api/models", "HEAD /user", "GET /user", "GET /"]),
        body in prop::collection::vec(any::<u8>(), 0..200),
        header in prop::sample::select(vec![
            "etag", "x-linked-etag", "x-linked-size", "x-repo-commit", "location", "content-length", "content-range",
        ]),
        value in "[ -~]{0,40}",
        as_body in any::<bool>(),
    ) {
        let place = Place::new();
        let fault = if as_body { Fault::Body(body) } else { Fault::Header(header.to_owned(), Some(value)) };
        place.server.plant(request, 1, fault);
        if let Ok(snapshot) = place.hub().adapter(ADAPTER) {
            prop_assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
        }
        let outside: Vec<_> = fs::read_dir(place.cache.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert!(outside.iter().all(|name| name == ".locks" || Path::new(name).starts_with("models--user--adapter")));
    }
}
