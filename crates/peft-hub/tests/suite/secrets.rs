//! The token goes to the Hub and nowhere else.

use crate::support::{ADAPTER, Heard, Place, TOKEN, weights};
use peft_hub::{ModelCard, PushOptions, Token};
use peft_testkit::hub::{Fault, Port, sha256};
use std::fs;

#[test]
fn other_hosts_never_see_the_token() {
    let place = Place::new();
    place.server.make_private(ADAPTER, TOKEN);
    place.hub_as_user().adapter(ADAPTER).unwrap();
    let requests = place.server.requests();
    let (hub, storage): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.port == Port::Hub);
    assert!(!storage.is_empty() && storage.iter().all(|request| request.token().is_none()), "{storage:#?}");
    assert!(hub.iter().all(|request| request.token() == Some(TOKEN)), "{hub:#?}");
}

#[test]
fn a_redirect_to_another_host_takes_no_token_along() {
    let place = Place::new();
    let elsewhere = Place::new();
    let target = format!("{}/api/models/user/adapter/revision/main", elsewhere.server.endpoint());
    place.server.plant("GET /api/models", 1, Fault::Redirect(target.clone()));
    let file = format!("{}/user/adapter/resolve/main/adapter_config.json", elsewhere.server.endpoint());
    place.server.plant("GET /user", 1, Fault::Redirect(file));
    place.server.plant("GET /api/models", 0, Fault::Redirect(target));
    let _ = place.hub_as_user().adapter(ADAPTER);
    let _ = place.hub_as_user().adapter(ADAPTER);
    let seen = elsewhere.server.requests();
    assert!(!seen.is_empty() && seen.iter().all(|request| request.header("authorization").is_none()), "{seen:#?}");
}

#[test]
fn nothing_that_is_printed_holds_it() {
    let token = Token::new(TOKEN).unwrap();
    assert_eq!(format!("{token:?}"), "Token(…)");
    let place = Place::new();
    let hub = place.hub_as_user();
    assert!(!format!("{hub:?} {:?}", hub.settings()).contains(TOKEN));
    // Every kind of error, with everything that was reported on the way.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    let unknown: Vec<u8> = weights().into_iter().rev().collect();
    fs::write(folder.path().join("adapter_model.safetensors"), unknown).unwrap();
    let echo = format!("you sent Bearer {TOKEN}");
    for status in [400, 401, 403, 404, 416, 429, 500] {
        for request in ["GET /api", "HEAD /", "GET /user", &*format!("GET /{}", sha256(&weights())), "POST /", "PUT /"]
        {
            let place = Place::new();
            place.server.require_token(TOKEN);
            // Even a server that echoes it does not get it printed.
            place.server.plant(request, 9, Fault::Status(status, vec![("x-error-message".into(), echo.clone())]));
            let heard = Heard::default();
            let hub = place.hub_as_user().with_progress(heard.clone());
            let options = PushOptions::default().card(ModelCard::new("LORA"));
            let fetched = hub.adapter(ADAPTER).map(|_| String::new());
            let pushed = hub.push(folder.path(), "me/new", &options).map(|_| String::new());
            assert!(fetched.is_err() || pushed.is_err(), "{request} {status}");
            for outcome in [fetched, pushed] {
                let error = outcome.unwrap_or_else(|e| format!("{e} {e:?}"));
                assert!(!error.contains(TOKEN), "{error}");
            }
            assert!(!heard.lines().iter().any(|line| line.contains(TOKEN)), "{:?}", heard.lines());
        }
    }
    let written = place.cached("");
    assert!(!written.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(TOKEN)));
}
