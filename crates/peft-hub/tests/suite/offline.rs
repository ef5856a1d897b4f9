//! Without the network.

use crate::support::{ADAPTER, Heard, MODEL, Place, assert_says};
use peft_hub::{Hub, Part};
use peft_testkit::hub::Fault;
use std::net::TcpListener;

#[test]
fn offline_reads_the_cache_and_asks_nobody() {
    let place = Place::with_model();
    let offline = || place.hub_with(|settings| settings.offline = true);
    let error = offline().adapter(ADAPTER).unwrap_err();
    assert_says(&error, &[ADAPTER, "adapter_config.json", "HF_HUB_OFFLINE", place.cache.path().to_str().unwrap()]);
    assert_eq!(place.server.requests().len(), 0);
    let online = (place.hub().adapter(ADAPTER).unwrap(), place.hub().model(MODEL).unwrap());
    place.server.forget();
    assert_eq!((offline().adapter(ADAPTER).unwrap(), offline().model(MODEL).unwrap()), online);
    assert_eq!(place.server.requests().len(), 0);
}

#[test]
fn half_a_model_is_none() {
    let place = Place::with_model();
    place.hub().get(MODEL, Part::ModelConfig).unwrap();
    let offline = place.hub_with(|settings| settings.offline = true);
    assert_says(&offline.model(MODEL).unwrap_err(), &[MODEL, "safetensors"]);
    offline.get(MODEL, Part::ModelConfig).unwrap();
    // A missing shard is noticed too.
    let snapshot = place.hub().model(MODEL).unwrap();
    offline.model(MODEL).unwrap();
    std::fs::remove_file(snapshot.path().join("model-2-of-2.safetensors")).unwrap();
    assert_says(&offline.model(MODEL).unwrap_err(), &[MODEL]);
}

#[test]
fn a_hub_out_of_reach_is_done_without() {
    let place = Place::new();
    let snapshot = place.hub().adapter(ADAPTER).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = || {
        let mut settings = place.settings();
        settings.endpoint = format!("http://{free}");
        Hub::new(settings)
    };
    let heard = Heard::default();
    assert_eq!(away().with_progress(heard.clone()).adapter(ADAPTER).unwrap(), snapshot);
    let lines = heard.lines();
    assert!(lines.iter().any(|line| line.contains("going on with what is in the cache")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("retry")), "one attempt is enough: {lines:?}");
    // What is not there cannot be had.
    let error = away().adapter("user/other").unwrap_err();
    assert!(error.is_transient());
    assert_says(&error, &["user/other", "127.0.0.1", "3 attempts"]);
}

#[test]
fn a_refusal_is_not_covered_up_by_the_cache() {
    let place = Place::new();
    place.hub().adapter(ADAPTER).unwrap();
    place.server.plant("GET /api/models", 1, Fault::Status(404, vec![("x-error-code".into(), "RepoNotFound".into())]));
    assert_says(&place.hub().adapter(ADAPTER).unwrap_err(), &[ADAPTER, "no such repository"]);
}
