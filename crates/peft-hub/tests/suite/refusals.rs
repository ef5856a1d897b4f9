//! What the Hub does not give, in words.

use crate::support::{ADAPTER, MODEL, Place, TOKEN, assert_says};
use peft_hub::{Error, Part, Token};

#[test]
fn what_is_missing_is_named() {
    let place = Place::with_model();
    let hub = place.hub();
    for (source, says) in [
        ("user/nothing", &["user/nothing", "no such repository on the Hub, or a private one", "HF_TOKEN"][..]),
        ("user/adapter@nowhere", &["user/adapter@nowhere", "no such revision"]),
        ("user/adapter/below", &["user/adapter/below", "no folder `below`"]),
        ("user/model", &["user/model", "this is a model, not an adapter", "no adapter_config.json", "config.json"]),
    ] {
        assert_says(&hub.adapter(source).unwrap_err(), says);
    }
    assert_says(&hub.model(ADAPTER).unwrap_err(), &["this is an adapter, not a model", "no config.json"]);
    place.server.commit("user/pickled", "main", [("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![0; 9])]);
    assert_says(
        &hub.model("user/pickled").unwrap_err(),
        &["neither model.safetensors nor model.safetensors.index.json", "pickles", "refs/pr/N"],
    );
    place.server.commit("user/half", "main", [("adapter_config.json", b"{}".to_vec())]);
    let says = ["neither adapter_model.safetensors nor adapter_model.bin", "it has adapter_config.json"];
    assert_says(&hub.adapter("user/half").unwrap_err(), &says);
    assert!(place.cached("models--user--half").is_empty(), "nothing is fetched of what is not whole");
}

#[test]
fn private_and_gated_repositories_say_what_to_do() {
    let place = Place::with_model();
    place.server.make_private(ADAPTER, TOKEN);
    place.server.make_gated(MODEL);
    let error = place.hub().adapter(ADAPTER).unwrap_err();
    assert!(matches!(error, Error::Refused { status: 401, .. }), "{error:?}");
    assert_says(&error, &["a private one", "HF_TOKEN"]);
    place.hub_as_user().adapter(ADAPTER).unwrap();
    let wrong = place.hub_with(|settings| settings.token = Token::new("hf_wrong"));
    assert_says(&wrong.adapter("user/other").unwrap_err(), &["does not accept the token"]);
    let error = place.hub().model(MODEL).unwrap_err();
    assert!(matches!(error, Error::Refused { status: 403, .. }), "{error:?}");
    assert_says(&error, &["access to it must be granted", "set HF_TOKEN"]);
    let error = place.hub_as_user().get(MODEL, Part::ModelConfig).unwrap_err();
    assert_says(&error, &["access to it must be granted"]);
    assert!(!error.to_string().contains("HF_TOKEN"), "{error}");
}
