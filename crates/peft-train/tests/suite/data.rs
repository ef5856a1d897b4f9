//! Rows and their encoding, against the tokenizers and templates of `transformers`.

use crate::fixtures;
use peft_train::chat::ChatTemplate;
use peft_train::data::{Encoded, Encoder, Row};
use peft_train::tokenizer::Tokenizer;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    row: serde_json::Value,
    ids: Vec<u32>,
    labels: Vec<i64>,
}

pub(crate) fn model_files() -> (Tokenizer, ChatTemplate) {
    let dir = fixtures::path("tokenizer");
    let tokenizer = Tokenizer::from_folder(&dir).unwrap();
    let chat = ChatTemplate::from_folder(&dir, tokenizer.special_tokens().clone()).unwrap().unwrap();
    (tokenizer, chat)
}

#[test]
fn rows_of_every_form_get_the_ids_and_labels_of_transformers() {
    let (tokenizer, chat) = model_files();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: Some(&chat) };
    for Case { row, ids, labels } in fixtures::json::<Fixture>("tokenizer/cases.json").cases {
        let encoded = encoder.encode(&Row::parse(&row.to_string()).unwrap()).unwrap();
        assert_eq!(encoded, Encoded { ids, labels }, "{row}");
    }
}

#[test]
fn a_completion_that_would_melt_into_its_prompt_is_encoded_apart() {
    let (tokenizer, _) = model_files();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let (prompt, completion) = ("the ca", "t sat");
    let whole = tokenizer.encode("the cat sat").unwrap();
    let prompt_ids = tokenizer.encode(prompt).unwrap();
    assert!(!whole.starts_with(&prompt_ids), "the case needs a token across the border");
    let row = Row::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() };
    let encoded = encoder.encode(&row).unwrap();
    let completion_ids = tokenizer.encode_bare(completion).unwrap();
    assert_eq!(encoded.ids, [prompt_ids.clone(), completion_ids, vec![2]].concat());
    assert_eq!(encoded.target_count(), encoded.ids.len() - prompt_ids.len());
}

#[test]
fn a_template_that_rewrites_the_prompt_counts_every_token_or_refuses() {
    let (tokenizer, _) = model_files();
    let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let chat = ChatTemplate::new(source, BTreeMap::new()).unwrap();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: Some(&chat) };
    let messages = r#"{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}"#;
    let encoded = encoder.encode(&Row::parse(&format!(r#"{{"messages": [{messages}]}}"#)).unwrap()).unwrap();
    assert_eq!(encoded.ids, tokenizer.encode_bare("2ab").unwrap());
    assert_eq!(encoded.target_count(), encoded.ids.len() - 1);

    let (prompt, completion) = messages.split_once(", {\"role\": \"assistant\"").unwrap();
    let row = format!(r#"{{"prompt": [{prompt}], "completion": [{{"role": "assistant"{completion}]}}"#);
    let error = encoder.encode(&Row::parse(&row).unwrap()).unwrap_err().to_string();
    assert!(error.contains("chat template"), "{error}");
}

#[test]
fn an_opening_of_the_assistants_turn_that_answers_lack_is_not_part_of_the_prompt() {
    let (tokenizer, _) = model_files();
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                  {% if add_generation_prompt %}<assistant><think>{% endif %}";
    let chat = ChatTemplate::new(source, BTreeMap::new()).unwrap();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: Some(&chat) };
    let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let encoded = encoder.encode(&Row::parse(row).unwrap()).unwrap();
    let learnt = encoded.ids.iter().zip(&encoded.labels).filter(|(_, label)| **label >= 0).map(|(id, _)| *id);
    assert_eq!(tokenizer.decode(&learnt.collect::<Vec<_>>(), true).unwrap(), "<assistant>b");
}

#[test]
fn lines_that_are_no_rows_say_why() {
    let forms = "{\"text\"}, {\"prompt\", \"completion\"}, {\"messages\"} or {\"input_ids\"[, \"labels\"]}";
    for (json, reason) in [
        ("{", "column"),
        ("[1]", "invalid type"),
        ("{}", forms),
        (r#"{"txt": "a"}"#, forms),
        (r#"{"prompt": "a"}"#, forms),
        (r#"{"completion": "a"}"#, "without `prompt`"),
        (r#"{"text": 3}"#, "expected a string"),
        (r#"{"text": "a", "messages": []}"#, "both text and messages"),
        (r#"{"prompt": "a", "completion": [{"role": "user"}]}"#, "both be"),
        (r#"{"prompt": 1, "completion": "a"}"#, "must be texts or lists"),
        (r#"{"messages": [{"content": "a"}]}"#, "role"),
        (r#"{"input_ids": [1, -1]}"#, "-1"),
        (r#"{"input_ids": [1.5]}"#, "1.5"),
        (r#"{"input_ids": [1, 2], "labels": [1]}"#, "1 `labels` for 2 `input_ids`"),
        (r#"{"input_ids": [1], "labels": ["a"]}"#, "labels"),
    ] {
        let error = Row::parse(json).unwrap_err();
        assert!(error.contains(reason), "{json}: {error}");
    }
}

#[test]
fn a_row_names_the_file_that_it_lacks() {
    let (tokenizer, _) = model_files();
    let encode = |encoder: Encoder<'_>, json| encoder.encode(&Row::parse(json).unwrap());
    let error = encode(Encoder::default(), r#"{"text": "a"}"#).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    let chat = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    let error = encode(Encoder { tokenizer: Some(&tokenizer), chat: None }, chat).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
    assert!(encode(Encoder::default(), r#"{"input_ids": [1, 2]}"#).is_ok());
}
