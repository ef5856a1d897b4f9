//! Transfers that break off, and how they go on.

use crate::support::{ADAPTER, Place, assert_says, resolve, weights};
use peft_testkit::hub::{Fault, Request, sha256};
use std::fs;
use std::time::Duration;

fn large() -> String {
    format!("GET /{}", sha256(&weights()))
}

/// The ranges that were asked for of the large file.
fn ranges(place: &Place) -> Vec<Option<String>> {
    let is_large = |request: &Request| request.line().starts_with(&large());
    let requests = place.server.requests();
    requests.iter().filter(|r| is_large(r)).map(|r| r.header("range").map(str::to_owned)).collect()
}

fn assert_fetched(place: &Place) {
    let snapshot = place.hub().adapter(ADAPTER).unwrap();
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
    let left = place.cached("models--user--adapter/blobs").into_iter().filter(|(name, _)| name.contains('.')).count();
    assert_eq!(left, 0, "nothing is left beside the files");
}

#[test]
fn a_body_that_breaks_off_goes_on_where_it_was() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Truncate(100_000));
    assert_fetched(&place);
    assert_eq!(ranges(&place), [None, Some("bytes=100000-".to_owned())]);
}

#[test]
fn progress_counts_as_success() {
    let place = Place::new();
    // Six times as many interruptions as attempts in a row are allowed.
    place.server.plant(&large(), 18, Fault::Truncate(10_000));
    assert_fetched(&place);
    assert_eq!(ranges(&place).len(), 19);
}

#[test]
fn a_socket_that_hangs_is_given_up_in_time() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Hang(50_000, Duration::from_secs(20)));
    place.server.plant("GET /api/models", 1, Fault::Hang(0, Duration::from_secs(20)));
    place.server.plant("HEAD /", 1, Fault::Hang(0, Duration::from_secs(20)));
    let start = std::time::Instant::now();
    assert_fetched(&place);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(ranges(&place), [None, Some("bytes=50000-".to_owned())]);
}

#[test]
fn a_transfer_that_gets_nowhere_ends_and_goes_on_the_next_time() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Truncate(100_000));
    place.server.plant(&large(), 3, Fault::Truncate(0));
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_says(&error, &["adapter_model.safetensors of user/adapter", "100000 bytes", "in 3 attempts at 127.0.0.1"]);
    let snapshot = place.cache.path().join("models--user--adapter/snapshots").join(&place.commit);
    assert!(!snapshot.join("adapter_model.safetensors").exists(), "no name for what is not whole");
    place.server.forget();
    assert_fetched(&place);
    assert_eq!(ranges(&place), [Some("bytes=100000-".to_owned())]);
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Truncate(100_000));
    place.server.plant(&large(), 1, Fault::IgnoreRange);
    assert_fetched(&place);
}

#[test]
fn a_part_of_another_file_is_noticed_by_the_hash() {
    let place = Place::new();
    let partial = place.blob(ADAPTER, &format!("{}.incomplete", sha256(&weights())));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    for wrong in [vec![9; 1000], vec![9; 300_000], vec![9; 300_001]] {
        fs::write(&partial, wrong).unwrap();
        assert_fetched(&place);
        fs::remove_dir_all(place.cache.path().join("models--user--adapter")).unwrap();
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
    }
}

#[test]
fn a_range_that_cannot_be_had_starts_anew() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Truncate(100_000));
    place.server.plant(&large(), 1, Fault::Status(416, vec![]));
    assert_fetched(&place);
    assert_eq!(ranges(&place), [None, Some("bytes=100000-".to_owned()), None]);
}

#[test]
fn passing_failures_are_tried_again_and_lasting_ones_are_not() {
    for status in [408, 429, 500, 502, 503, 504] {
        let place = Place::new();
        for request in ["GET /api/models", "HEAD /user", "GET /user", &*large()] {
            place.server.plant(request, 2, Fault::Status(status, vec![]));
        }
        assert_fetched(&place);
    }
    let place = Place::new();
    place.server.plant("HEAD /", 3, Fault::Status(500, vec![]));
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert!(error.is_transient());
    assert_says(&error, &["adapter_config.json of user/adapter", "500 Internal Server Error", "3 attempts"]);
    let place = Place::new();
    place.server.plant("HEAD /", 1, Fault::Status(400, vec![("x-error-message".into(), "no good".into())]));
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert!(!error.is_transient());
    assert_says(&error, &["400 Bad Request: no good"]);
    assert_eq!(place.server.count(&resolve(&place, "HEAD", "adapter_config.json")), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_says_how_much_room_is_needed() {
    let place = Place::new();
    let partial = place.blob(ADAPTER, &format!("{}.incomplete", sha256(&weights())));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert_says(
        &error,
        &["No space left", "adapter_model.safetensors of user/adapter has 300000 bytes", "HF_HUB_CACHE"],
    );
    assert!(!place.blob(ADAPTER, &sha256(&weights())).exists());
    fs::remove_file(&partial).unwrap();
    assert_fetched(&place);
}

#[test]
#[cfg(unix)]
fn a_cache_that_cannot_be_written_is_named() {
    let place = Place::new();
    let file = place.cache.path().join("file");
    fs::write(&file, "").unwrap();
    let error = place.hub_with(|settings| settings.cache = file.join("hub")).adapter(ADAPTER).unwrap_err();
    assert_says(&error, &["cannot", file.to_str().unwrap()]);
}
