//! What is fetched, and where it ends up.

use crate::support::{ADAPTER, Heard, MODEL, Place, weights};
use peft_hub::Part;
use peft_testkit::hub::{Fault, git_hash, sha256};
use std::fs;
use std::time::Duration;

#[test]
fn an_adapter_comes_with_what_is_needed_alone() {
    let place = Place::new();
    let snapshot = place.hub().adapter(ADAPTER).unwrap();
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
    let origin = snapshot.origin().unwrap();
    assert_eq!((&*origin.commit, origin.repo.to_string()), (&*place.commit, ADAPTER.to_owned()));
    let mut names: Vec<_> = fs::read_dir(snapshot.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(place.server.requests().len(), 1 + 2 + 3, "{:#?}", place.server.requests());
}

#[test]
fn the_cache_is_laid_out_as_python_does() {
    let place = Place::new();
    place.hub().adapter(ADAPTER).unwrap();
    let config = br#"{"peft_type": "LORA"}"#.to_vec();
    let folder = "models--user--adapter";
    let (commit, large) = (&place.commit, sha256(&weights()));
    let expected = [
        (format!("blobs/{}", git_hash(&config)), config.clone()),
        (format!("blobs/{large}"), weights()),
        ("refs/main".to_owned(), commit.clone().into_bytes()),
        (format!("snapshots/{commit}/adapter_config.json"), config),
        (format!("snapshots/{commit}/adapter_model.safetensors"), weights()),
    ];
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(place.cached(folder), expected);
    let link = place.cache.path().join(folder).join("snapshots").join(commit).join("adapter_model.safetensors");
    assert_eq!(fs::read_link(link).unwrap().to_str(), Some(&*format!("../../blobs/{large}")));
    assert!(place.cache.path().join(".locks").join(folder).join(format!("{large}.lock")).exists());
}

#[test]
fn a_second_start_asks_for_the_commit_alone() {
    let place = Place::with_model();
    let first = (place.hub().adapter(ADAPTER).unwrap(), place.hub().model(MODEL).unwrap());
    place.server.forget();
    assert_eq!((place.hub().adapter(ADAPTER).unwrap(), place.hub().model(MODEL).unwrap()), first);
    let lines: Vec<_> = place.server.requests().iter().map(|r| r.line()).collect();
    assert_eq!(lines, ["GET /api/models/user/adapter/revision/main", "GET /api/models/user/model/revision/main"]);
}

#[test]
fn a_commit_that_is_here_needs_no_request() {
    let place = Place::with_model();
    let commit = place.hub().model(MODEL).unwrap().origin().unwrap().commit.clone();
    place.server.forget();
    let pinned = place.hub().model(&format!("{MODEL}@{commit}")).unwrap();
    assert!(pinned.path().ends_with(&commit));
    assert_eq!(place.server.requests().len(), 0);
    // More of it than was fetched is a matter for the network again.
    place.hub().get(&format!("{MODEL}@{commit}"), Part::WholeModel).unwrap();
    assert!(pinned.path().join("merges.txt").exists());
}

#[test]
fn a_model_comes_with_its_shards_and_without_other_formats() {
    let place = Place::with_model();
    let snapshot = place.hub().model(MODEL).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(snapshot.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(names, [&["config.json"], &shards[..], &["tokenizer.json"]].concat());
    let config_alone = Place::with_model();
    let snapshot = config_alone.hub().get(MODEL, Part::ModelConfig).unwrap();
    assert_eq!(fs::read_dir(snapshot.path()).unwrap().count(), 1);
}

#[test]
fn the_same_file_of_two_commits_is_fetched_once() {
    let place = Place::new();
    place.hub().adapter(ADAPTER).unwrap();
    let next = place.server.commit(ADAPTER, "main", [("adapter_config.json", b"{\"r\": 8}".to_vec())]);
    place.server.forget();
    let snapshot = place.hub().adapter(ADAPTER).unwrap();
    assert!(snapshot.path().ends_with(&next), "a revision that moved is followed");
    assert_eq!(fs::read(snapshot.path().join("adapter_config.json")).unwrap(), b"{\"r\": 8}");
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
    let fetched =
        place.server.requests().iter().filter(|r| r.line().starts_with("GET") && !r.line().contains("/api/")).count();
    assert_eq!(fetched, 1, "{:#?}", place.server.requests());
    // The old commit is still there for who wants it.
    assert!(place.hub().adapter(&format!("{ADAPTER}@{}", place.commit)).unwrap().path().ends_with(&place.commit));
}

#[test]
fn branches_pull_requests_and_folders_are_told_apart() {
    let place = Place::new();
    for (branch, file, text) in [
        ("main", "adapter_config.json", "root"),
        ("main", "checkpoints/last/adapter_config.json", "below"),
        ("dev", "adapter_config.json", "dev"),
        ("refs/pr/3", "adapter_config.json", "request"),
    ] {
        let weights = file.replace("config.json", "model.safetensors");
        place.server.commit("u/many", branch, [(file, text.into()), (&weights, text.into())]);
    }
    for (source, text) in [
        ("u/many", "root"),
        ("hf://u/many", "root"),
        ("u/many/checkpoints/last", "below"),
        ("hf://u/many@main/checkpoints/last", "below"),
        ("u/many@dev", "dev"),
        ("u/many@refs/pr/3", "request"),
        ("https://huggingface.co/u/many/tree/dev", "dev"),
    ] {
        let snapshot = place.hub().adapter(source).unwrap();
        assert_eq!(fs::read_to_string(snapshot.path().join("adapter_config.json")).unwrap(), text, "{source}");
    }
    assert!(place.cache.path().join("models--u--many/refs/refs/pr/3").is_file());
}

#[test]
fn a_folder_wins_over_the_hub() {
    let place = Place::new();
    let folder = place.cache.path().join("local");
    fs::create_dir(&folder).unwrap();
    let snapshot = place.hub().adapter(folder.to_str().unwrap()).unwrap();
    assert_eq!((snapshot.path(), snapshot.origin()), (&*folder, None));
    assert_eq!(place.server.requests().len(), 0);
}

#[test]
fn a_renamed_repository_is_found() {
    let place = Place::new();
    place.server.rename(ADAPTER, "user/renamed");
    let snapshot = place.hub().adapter(ADAPTER).unwrap();
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
}

#[test]
fn progress_says_how_far_it_is() {
    let place = Place::new();
    let heard = Heard::default();
    place.server.plant("GET /api/models/", 1, Fault::Status(503, vec![("retry-after".into(), "0".into())]));
    place.hub().with_progress(heard.clone()).adapter(ADAPTER).unwrap();
    let lines = heard.lines();
    assert_eq!(lines[0], "retry 503 Service Unavailable 0ns");
    let begin = lines.iter().position(|l| l == "begin adapter_model.safetensors 0/300000").unwrap();
    assert_eq!(lines[begin..].iter().filter(|l| *l == "end").count(), 1);
    let last = lines[begin..].iter().rfind(|l| l.starts_with("at")).unwrap();
    assert_eq!(last, "at 300000");
    assert_eq!(*lines.last().unwrap(), format!("note {ADAPTER} is at commit {}", place.commit));
}

#[test]
fn slow_networks_are_waited_for() {
    let place = Place::new();
    // Each piece comes within the time a transfer may stand still, all of them take longer.
    place.server.plant("GET /", 0, Fault::Corrupt);
    let file = format!("GET /{}", sha256(&weights()));
    place.server.plant(&file, 1, Fault::Slow(60_000, Duration::from_millis(250)));
    let hub = place.hub_with(|settings| settings.attempts = 1);
    let snapshot = hub.adapter(ADAPTER).unwrap();
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
    assert_eq!(place.server.count(&file), 1);
}
