//! Rows of one's own problems.

use super::problem::{Problem, Prompt};
use crate::chat::Message;
use crate::json_lines::Object;
use serde_json::Value;

const FORM: &str =
    "a row is {\"prompt\": text or messages, \"answer\": text or number} and whatever else a reward needs";

/// The problem of a row.
pub(super) fn problem(mut row: Object) -> Result<Problem, String> {
    let prompt = match row.shift_remove("prompt") {
        Some(Value::String(text)) if !text.is_empty() => Prompt::Text(text),
        Some(Value::Array(messages)) if !messages.is_empty() => {
            let messages: Result<Vec<Message>, _> = messages.into_iter().map(serde_json::from_value).collect();
            Prompt::Chat(messages.map_err(|error| format!("`prompt`: {error}"))?)
        }
        Some(Value::String(_) | Value::Array(_)) => return Err("`prompt` is empty".to_owned()),
        Some(_) => return Err(format!("`prompt` must be a text or a list of messages; {FORM}")),
        None => return Err(format!("has no `prompt`; {FORM}")),
    };
    let answer = match row.shift_remove("answer") {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(format!("`answer` must be a text or a number; {FORM}")),
        None => return Err(format!("has no `answer`; {FORM}")),
    };
    Ok(Problem::new(prompt, answer).with_fields(row))
}
