//! The environment, as `huggingface_hub` reads it.

use crate::support::assert_says;
use peft_hub::{Result, Settings, Token};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
    Settings::from_lookup(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn the_cache_is_where_python_has_it() {
    for (variables, cache) in [
        (&[("HOME", "/home/u")][..], "/home/u/.cache/huggingface/hub"),
        (&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
        (&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
        (&[("HOME", "/home/u"), ("HF_HOME", "~/h")], "/home/u/h/hub"),
        (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")], "/c"),
        (&[("HOME", "/home/u"), ("HF_HOME", "")], "/home/u/.cache/huggingface/hub"),
    ] {
        assert_eq!(settings(variables).unwrap().cache, Path::new(cache), "{variables:?}");
    }
    assert_says(&settings(&[]).unwrap_err(), &["HOME", "HF_HOME"]);
}

#[test]
fn the_rest_of_the_variables() {
    let home = ("HOME", "/nowhere");
    let plain = settings(&[home]).unwrap();
    assert_eq!((&*plain.endpoint, plain.offline, plain.token), ("https://huggingface.co", false, None));
    let set = settings(&[
        home,
        ("HF_ENDPOINT", "https://mirror.test/"),
        ("HF_HUB_OFFLINE", "Yes"),
        ("HF_TOKEN", " hf_x\n"),
        ("HF_HUB_ETAG_TIMEOUT", "3"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
    ])
    .unwrap();
    assert_eq!((&*set.endpoint, set.offline, set.token), ("https://mirror.test", true, Token::new("hf_x")));
    assert_eq!((set.answer_timeout, set.stall_timeout), (Duration::from_secs(3), Duration::from_millis(2500)));
    assert!(!settings(&[home, ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    assert!(settings(&[home, ("TRANSFORMERS_OFFLINE", "1")]).unwrap().offline);
    for (variable, value, says) in [
        ("HF_ENDPOINT", "mirror.test", "http"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "seconds"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "0", "seconds"),
        ("HF_HUB_ETAG_TIMEOUT", "NaN", "seconds"),
        ("HF_HUB_ETAG_TIMEOUT", "1e999", "seconds"),
    ] {
        assert_says(&settings(&[home, (variable, value)]).unwrap_err(), &[variable, value, says]);
    }
}

#[test]
fn the_token_comes_from_the_environment_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("token"), "hf_file\n").unwrap();
    fs::write(at("other"), "hf_other").unwrap();
    let home = ("HF_HOME", &*at(""));
    assert_eq!(settings(&[home]).unwrap().token, Token::new("hf_file"));
    assert_eq!(settings(&[home, ("HF_TOKEN_PATH", &at("other"))]).unwrap().token, Token::new("hf_other"));
    assert_eq!(settings(&[home, ("HF_TOKEN", "hf_env")]).unwrap().token, Token::new("hf_env"));
    assert_eq!(settings(&[home, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap().token, None);
    assert_says(&settings(&[home, ("HF_TOKEN_PATH", &at(""))]).unwrap_err(), &["token file", &at("")]);
    assert_eq!(settings(&[home, ("HF_TOKEN_PATH", &at("missing"))]).unwrap().token, None);
}
