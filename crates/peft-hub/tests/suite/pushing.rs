//! Publishing an adapter.

use crate::support::{Place, TOKEN, assert_says};
use peft_hub::{Error, ModelCard, PushOptions, Token};
use peft_testkit::hub::{Fault, Port};
use std::fs;
use tempfile::TempDir;

/// Nothing that the Hub has.
fn weights() -> Vec<u8> {
    crate::support::weights().into_iter().rev().collect()
}

fn folder(weights: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), "{\"peft_type\": \"TINYLORA\"}").unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), weights).unwrap();
    fs::write(folder.path().join("optimizer.bin"), "not for others").unwrap();
    folder
}

fn options() -> PushOptions {
    let mut card = ModelCard::new("TINYLORA");
    card.parameters = Some(13);
    card.base_model = Some("user/model".to_owned());
    PushOptions::default().card(card)
}

fn place() -> Place {
    let place = Place::new();
    place.server.require_token(TOKEN);
    place
}

#[test]
fn what_was_pushed_can_be_fetched() {
    let place = place();
    let hub = place.hub_as_user();
    let pushed = hub.push(folder(&weights()).path(), "me/new", &options()).unwrap();
    assert_eq!(pushed.url, format!("{}/me/new", place.server.endpoint()));
    assert_eq!(pushed.files, ["adapter_config.json", "adapter_model.safetensors", "README.md"]);
    assert_eq!(place.server.files("me/new", "main"), ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(place.server.file("me/new", "main", "adapter_model.safetensors"), Some((weights(), true)));
    assert_eq!(place.server.is_private("me/new"), Some(false));
    let snapshot = hub.adapter("me/new").unwrap();
    assert_eq!(snapshot.origin().unwrap().commit, pushed.commit);
    assert_eq!(fs::read(snapshot.path().join("adapter_model.safetensors")).unwrap(), weights());
    let (card, large) = place.server.file("me/new", "main", "README.md").unwrap();
    let card = String::from_utf8(card).unwrap();
    assert!(!large && card.starts_with("---\nbase_model: user/model\nlibrary_name: peft\n"), "{card}");
    for part in ["# new", "13 trained numbers", "PeftModel.from_pretrained(base, \"me/new\")", "--adapter me/new"] {
        assert!(card.contains(part), "`{part}` is not in: {card}");
    }
    // Again, to a repository that exists, with a file that the Hub has.
    let again = hub.push(folder(&weights()).path(), "me/new", &options()).unwrap();
    assert_ne!(again.commit, pushed.commit);
    assert_eq!(place.server.requests().iter().filter(|r| r.method == "PUT").count(), 1, "sent once");
}

#[test]
fn small_and_large_files_and_parts() {
    let place = place();
    let hub = place.hub_as_user();
    hub.push(folder(b"tiny").path(), "me/tiny", &options()).unwrap();
    assert_eq!(place.server.file("me/tiny", "main", "adapter_model.safetensors"), Some((b"tiny".to_vec(), false)));
    place.server.upload_in_parts(70_000);
    hub.push(folder(&weights()).path(), "me/parts", &options()).unwrap();
    assert_eq!(place.server.file("me/parts", "main", "adapter_model.safetensors"), Some((weights(), true)));
    let parts: Vec<_> = place.server.requests().into_iter().filter(|r| r.port == Port::Storage).collect();
    assert_eq!(parts.iter().map(|r| r.body.len()).collect::<Vec<_>>(), [70_000, 70_000, 70_000, 70_000, 20_000]);
    assert!(parts.iter().all(|r| r.token().is_none()), "{parts:#?}");
}

#[test]
fn options_are_kept() {
    let place = place();
    let own = folder(b"tiny");
    fs::write(own.path().join("README.md"), "# mine").unwrap();
    let options = options().private(true).message("Third try");
    place.server.commit("me/secret", "dev", []);
    place.hub_as_user().push(own.path(), "me/hidden", &options).unwrap();
    assert_eq!(place.server.is_private("me/hidden"), Some(true));
    assert_eq!(place.server.file("me/hidden", "main", "README.md").unwrap().0, b"# mine");
    place.hub_as_user().push(own.path(), "me/secret@dev", &options).unwrap();
    assert_eq!(place.server.files("me/secret", "main"), [""; 0]);
    assert_eq!(place.server.files("me/secret", "dev").len(), 3);
    let requests = place.server.requests();
    let commit = requests.iter().find(|r| r.line().contains("/commit/")).unwrap();
    assert!(String::from_utf8_lossy(&commit.body).contains("\"summary\":\"Third try\""));
}

#[test]
fn what_cannot_be_pushed_is_refused_before_anything_is_sent() {
    let place = place();
    let right = folder(b"x");
    let error = place.hub().push(right.path(), "me/new", &options()).unwrap_err();
    assert!(matches!(error, Error::NoToken { .. }), "{error:?}");
    assert_says(&error, &["pushing to me/new", "HF_TOKEN", "hf auth login"]);
    let offline = place.hub_with(|s| (s.offline, s.token) = (true, Token::new(TOKEN)));
    assert_says(&offline.push(right.path(), "me/new", &options()).unwrap_err(), &["HF_HUB_OFFLINE"]);
    let hub = place.hub_as_user();
    for (repo, says) in [("new", "user/name"), ("me/new/sub", "user/name"), ("me/ne w", "letters")] {
        assert_says(&hub.push(right.path(), repo, &options()).unwrap_err(), &[says]);
    }
    assert_says(&hub.push("/no/such", "me/new", &options()).unwrap_err(), &["/no/such", "no such folder"]);
    fs::remove_file(right.path().join("adapter_model.safetensors")).unwrap();
    assert_says(&hub.push(right.path(), "me/new", &options()).unwrap_err(), &["no adapter_model.safetensors"]);
    fs::write(right.path().join("adapter_model.bin"), "").unwrap();
    assert_says(&hub.push(right.path(), "me/new", &options()).unwrap_err(), &["pickle", "save it again"]);
    assert_eq!(place.server.requests().len(), 0);
}

#[test]
fn failures_leave_no_commit() {
    for request in
        ["POST /api/repos", "POST /api/models/me/new/preupload", "POST /me/new.git", "PUT /", "POST /lfs/verify"]
    {
        let place = place();
        place.server.plant(request, 9, Fault::Status(403, vec![("x-error-message".into(), "not you".into())]));
        let error = place.hub_as_user().push(folder(&weights()).path(), "me/new", &options()).unwrap_err();
        assert_says(&error, &["403 Forbidden: not you"]);
        assert!(place.server.files("me/new", "main").is_empty(), "{request}");
        // What may pass is tried again.
        place.server.plant(request, 2, Fault::Status(503, vec![]));
    }
    let place = place();
    for request in
        ["POST /api/repos", "POST /api/models/me/new/preupload", "POST /me/new.git", "PUT /", "POST /lfs/verify"]
    {
        place.server.plant(request, 2, Fault::Status(503, vec![]));
    }
    place.hub_as_user().push(folder(&weights()).path(), "me/new", &options()).unwrap();
    // A commit is not sent twice when nobody knows what became of the first.
    place.server.forget();
    place.server.plant("POST /api/models/me/new/commit", 9, Fault::Status(503, vec![]));
    place.hub_as_user().push(folder(&weights()).path(), "me/new", &options()).unwrap_err();
    assert_eq!(place.server.count("POST /api/models/me/new/commit"), 1);
}

#[test]
fn a_card_never_names_a_folder_as_its_base() {
    let place = place();
    let mut card = ModelCard::new("LORA");
    card.base_model = Some("/home/somebody/llama".to_owned());
    card.facts = vec![("rank | size".to_owned(), "8\n".to_owned())];
    let text = card.render("me/new");
    assert!(!text.split("\n---\n").next().unwrap().contains("base_model"), "{text}");
    assert!(text.contains("`/home/somebody/llama`, which is not on the Hub"), "{text}");
    assert!(text.contains("| rank   size | 8  |"), "{text}");
    let options = PushOptions::default().card(card);
    place.hub_as_user().push(folder(b"x").path(), "me/new", &options).unwrap();
}
