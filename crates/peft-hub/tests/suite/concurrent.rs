//! Several processes and one cache.

use crate::support::{ADAPTER, Place, weights};
use peft_hub::{Hub, Settings};
use peft_testkit::hub::{Fault, sha256};
use std::env;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ENDPOINT: &str = "PEFT_HUB_TEST_ENDPOINT";
const CACHE: &str = "PEFT_HUB_TEST_CACHE";

/// Not a test by itself: what another process does, which is this program again.
#[test]
fn in_another_process() {
    let (Ok(endpoint), Ok(cache)) = (env::var(ENDPOINT), env::var(CACHE)) else { return };
    let mut settings = Settings::new(cache);
    settings.endpoint = endpoint;
    Hub::new(settings).adapter(ADAPTER).unwrap();
}

fn start(place: &Place) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "concurrent::in_another_process"])
        .env(ENDPOINT, place.server.endpoint())
        .env(CACHE, place.cache.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn large() -> String {
    format!("GET /{}", sha256(&weights()))
}

fn assert_whole(place: &Place) {
    let snapshot = place.hub_with(|settings| settings.offline = true).adapter(ADAPTER).unwrap();
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
}

#[test]
fn two_processes_fetch_a_file_once() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Slow(60_000, Duration::from_millis(100)));
    let children = [start(&place), start(&place), start(&place)];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_whole(&place);
    assert_eq!(place.server.count(&large()), 1, "the others waited");
}

#[test]
fn many_threads_share_a_cache() {
    let place = Place::new();
    let hub = place.hub();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| hub.adapter(ADAPTER).unwrap());
        }
    });
    assert_whole(&place);
    assert_eq!(place.server.count(&large()), 1);
}

#[test]
fn a_killed_process_leaves_a_part_that_the_next_goes_on_with() {
    let place = Place::new();
    place.server.plant(&large(), 1, Fault::Hang(120_000, Duration::from_secs(60)));
    let mut child = start(&place);
    let partial = place.blob(ADAPTER, &format!("{}.incomplete", sha256(&weights())));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !partial.metadata().is_ok_and(|metadata| metadata.len() == 120_000) {
        assert!(Instant::now() < deadline, "the transfer never began");
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(place.hub_with(|settings| settings.offline = true).adapter(ADAPTER).is_err());
    assert!(start(&place).wait().unwrap().success());
    assert_whole(&place);
    let requests = place.server.requests();
    let last = requests.iter().rfind(|request| request.line().starts_with(&large())).unwrap();
    assert_eq!(last.header("range"), Some("bytes=120000-"));
}
