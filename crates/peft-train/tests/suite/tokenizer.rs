//! The tokenizer of a model folder.

use crate::fixtures;
use peft_train::tokenizer::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    stream: Stream,
}

#[derive(Deserialize)]
struct Stream {
    text: String,
    ids: Vec<u32>,
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(&fixtures::path("tokenizer")).unwrap()
}

/// A copy of the fixture's folder with one file replaced.
fn folder_with(name: &str, text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(fixtures::path("tokenizer").join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join(name), text).unwrap();
    dir
}

#[test]
fn a_text_is_encoded_whole_and_without_padding() {
    let stream = fixtures::json::<Fixture>("tokenizer/cases.json").stream;
    assert_eq!(tokenizer().encode(&stream.text).unwrap(), stream.ids);
    assert_eq!(tokenizer().encode_bare(&stream.text).unwrap(), stream.ids[1..]);
    assert_eq!(tokenizer().encode("").unwrap(), [0]);
}

#[test]
fn special_tokens_come_from_the_configuration_files() {
    let tokenizer = tokenizer();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(2), 2));
    assert_eq!(tokenizer.stop_ids(), [2, 1]);
    assert_eq!(tokenizer.special_tokens()["eos_token"], "<|im_end|>");

    let dir = folder_with("tokenizer_config.json", "{}");
    std::fs::write(dir.path().join("generation_config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": [1, 2], "pad_token_id": 7}"#).unwrap();
    std::fs::write(dir.path().join("special_tokens_map.json"), r#"{"bos_token": {"content": "<|begin|>"}}"#).unwrap();
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(1), 7));
    assert_eq!(tokenizer.stop_ids(), [1, 2]);
}

#[test]
fn add_bos_and_add_eos_decide_what_surrounds_a_text() {
    let surrounded = |flags: &str| {
        let config = format!(r#"{{"bos_token": "<|begin|>", "eos_token": "<|im_end|>", {flags}}}"#);
        let tokenizer = Tokenizer::from_folder(folder_with("tokenizer_config.json", &config).path()).unwrap();
        let ids = tokenizer.encode("the cat").unwrap();
        assert!(ids.starts_with(&tokenizer.encode_open("the cat").unwrap()), "{ids:?}");
        ids
    };
    assert_eq!(surrounded(r#""add_bos_token": false"#), [261, 269]);
    assert_eq!(surrounded(r#""add_bos_token": true"#), [0, 261, 269]);
    assert_eq!(surrounded(r#""add_bos_token": true, "add_eos_token": true"#), [0, 261, 269, 2]);
    assert_eq!(surrounded(r#""add_eos_token": true"#), [261, 269, 2]);
}

#[test]
fn an_open_text_ends_with_its_own_special_tokens_only() {
    let config =
        r#"{"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "add_bos_token": true, "add_eos_token": true}"#;
    let tokenizer = Tokenizer::from_folder(folder_with("tokenizer_config.json", config).path()).unwrap();
    assert_eq!(tokenizer.encode_open("the cat<|im_end|>").unwrap(), [0, 261, 269, 2]);
    assert_eq!(tokenizer.encode_open("").unwrap(), [0]);
}

#[test]
fn a_stream_of_ids_adds_up_to_the_text() {
    let stream = fixtures::json::<Fixture>("tokenizer/cases.json").stream;
    let tokenizer = tokenizer();
    let mut decoder = tokenizer.decode_stream();
    let mut text = String::new();
    let mut held_back = 0;
    for &id in &stream.ids {
        let piece = decoder.push(id).unwrap();
        assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
        held_back += usize::from(piece.is_empty());
        text.push_str(&piece);
        assert!(stream.text.starts_with(&text), "{text:?}");
    }
    assert_eq!(text + &decoder.finish().unwrap(), stream.text);
    assert!(held_back > 3, "characters of several bytes come in several ids");
}

#[test]
fn a_stream_gives_up_a_cut_character_at_its_end() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode_bare("at 😀").unwrap();
    let mut decoder = tokenizer.decode_stream();
    let text: String = ids[..ids.len() - 1].iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(text, "at ");
    assert_eq!(decoder.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(empty.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    for (file, text, culprit) in [
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json"),
        ("tokenizer_config.json", r#"{"eos_token": "<missing>"}"#, "<missing>"),
    ] {
        let error = Tokenizer::from_folder(folder_with(file, text).path()).unwrap_err().to_string();
        assert!(error.contains(culprit), "{error}");
    }
}
