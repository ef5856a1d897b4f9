//! Chat templates against `transformers.apply_chat_template`.

use crate::fixtures;
use peft_train::chat::{ChatTemplate, Message};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

#[derive(Deserialize)]
struct Fixture {
    now: u64,
    special_tokens: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<Message>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn conversations_render_as_in_transformers() {
    let fixture: Fixture = fixtures::json("chat/cases.json");
    let now = UNIX_EPOCH + Duration::from_secs(fixture.now);
    let mut refused = 0;
    for case in &fixture.cases {
        let source = std::fs::read_to_string(fixtures::path(&format!("chat/{}.jinja", case.template))).unwrap();
        let template = ChatTemplate::new(&source, fixture.special_tokens.clone()).unwrap().with_now(now);
        let rendered = template.render(&fixture.conversations[&case.conversation], case.add_generation_prompt);
        let place = format!("{} of {}", case.conversation, case.template);
        match (&case.text, &case.error) {
            (Some(text), _) => assert_eq!(&rendered.unwrap(), text, "{place}"),
            (_, Some(message)) => {
                let error = rendered.unwrap_err().to_string();
                assert!(error.contains(message), "{place}: {error}");
                refused += 1;
            }
            _ => panic!("{place} has neither text nor error"),
        }
    }
    assert_eq!(refused, 4, "both templates that refuse a conversation are to be among the cases");
}

fn render(source: &str, content: &str) -> Result<String, String> {
    let template = ChatTemplate::new(source, BTreeMap::new()).map_err(|error| error.to_string())?;
    template.render(&[Message::new("user", content)], false).map_err(|error| error.to_string())
}

#[test]
fn broken_templates_are_errors_with_a_line() {
    let error = render("a\n{% for x in %}", "").unwrap_err();
    assert!(error.starts_with("chat template") && error.contains("line 2"), "{error}");
    let error = render("{{ messages[0].content.frobnicate() }}", "text").unwrap_err();
    assert!(error.contains("frobnicate"), "{error}");
    let error = render("{{ strftime_now('%Q') }}", "").unwrap_err();
    assert!(error.contains("%Q"), "{error}");
}

#[test]
fn dates_of_every_kind_of_year_are_right() {
    // `date -u -d @SECONDS '+%Y-%m-%d %A %j'`
    let dates = [
        (0, "1970-01-01 Thursday 001"),
        (951_782_400, "2000-02-29 Tuesday 060"),
        (1_735_603_200, "2024-12-31 Tuesday 366"),
        (1_772_323_200, "2026-03-01 Sunday 060"),
        (4_107_542_400, "2100-03-01 Monday 060"),
    ];
    for (seconds, expected) in dates {
        let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d %A %j') }}", BTreeMap::new()).unwrap();
        let template = template.with_now(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(template.render(&[], false).unwrap(), expected);
    }
}

#[test]
fn a_message_needs_a_role() {
    for json in [r#"{"content": "x"}"#, r#"{"role": 3}"#, r#""x""#] {
        let error = serde_json::from_str::<Message>(json).unwrap_err().to_string();
        assert!(error.contains("role"), "{error}");
    }
}

#[test]
fn a_folder_has_its_template_in_one_of_two_files() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ChatTemplate::from_folder(dir.path(), BTreeMap::new());
    let render = || load().unwrap().unwrap().render(&[], false).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();

    assert!(load().unwrap().is_none());
    write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
    assert!(load().unwrap().is_none());
    write("tokenizer_config.json", r#"{"chat_template": "plain"}"#);
    assert_eq!(render(), "plain");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
    );
    assert_eq!(render(), "d");
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
    let error = load().unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("`rag`"), "{error}");
    write("chat_template.jinja", "file\n");
    assert_eq!(render(), "file");
    write("chat_template.jinja", "{% if %}");
    let error = load().unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}
