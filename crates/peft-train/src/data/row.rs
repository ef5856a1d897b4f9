//! One line of a data file.

use crate::chat::Message;
use serde::Deserialize;

const FORMS: &str = "{\"text\"}, {\"prompt\", \"completion\"}, {\"messages\"} or {\"input_ids\"[, \"labels\"]}";

/// A training row before tokenization.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Row {
    /// Plain text.
    Text(String),
    /// Text of which only the completion is learnt.
    Completion {
        /// What is given.
        prompt: String,
        /// What follows it.
        completion: String,
    },
    /// Chat messages of which only the completion is learnt.
    ChatCompletion {
        /// What is given.
        prompt: Vec<Message>,
        /// What follows it.
        completion: Vec<Message>,
    },
    /// A whole conversation.
    Chat(Vec<Message>),
    /// Text that was tokenized elsewhere.
    Tokens {
        /// The ids.
        input_ids: Vec<u32>,
        /// One label per id; `None` labels every token with itself.
        labels: Option<Vec<i64>>,
    },
}

#[derive(Deserialize)]
struct Fields {
    text: Option<String>,
    prompt: Option<Turn>,
    completion: Option<Turn>,
    messages: Option<Vec<Message>>,
    input_ids: Option<Vec<i64>>,
    labels: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a prompt and a completion must be texts or lists of messages with a `role`")]
enum Turn {
    Text(String),
    Messages(Vec<Message>),
}

impl Row {
    /// Reads one JSON object.
    ///
    /// # Errors
    /// Says what is wrong, without the place: not JSON, none of the accepted forms, or more than one of them.
    pub fn parse(json: &str) -> Result<Self, String> {
        let fields: Fields = serde_json::from_str(json).map_err(|error| {
            let message = error.to_string();
            // The reader sees a single line and reports its own line 1.
            message.replace(" at line 1 column ", " at column ")
        })?;
        let mut rows = Vec::new();
        if let Some(text) = fields.text {
            rows.push(("text", Self::Text(text)));
        }
        match (fields.prompt, fields.completion) {
            (Some(prompt), Some(completion)) => {
                rows.push(("prompt and completion", Self::completion(prompt, completion)?))
            }
            (None, Some(_)) => return Err(format!("`completion` without `prompt`; a row is {FORMS}")),
            // Conversations often come with a copy of their first turn as `prompt`.
            (_, None) => {}
        }
        if let Some(messages) = fields.messages {
            rows.push(("messages", Self::Chat(messages)));
        }
        if let Some(input_ids) = fields.input_ids {
            rows.push(("input_ids", Self::tokens(input_ids, fields.labels)?));
        }
        match (rows.pop(), rows.pop()) {
            (Some((_, row)), None) => Ok(row),
            (Some((second, _)), Some((first, _))) => Err(format!("has both {first} and {second}; a row is {FORMS}")),
            (None, _) => Err(format!("fits no accepted form; a row is {FORMS}")),
        }
    }

    fn completion(prompt: Turn, completion: Turn) -> Result<Self, String> {
        match (prompt, completion) {
            (Turn::Text(prompt), Turn::Text(completion)) => Ok(Self::Completion { prompt, completion }),
            (Turn::Messages(prompt), Turn::Messages(completion)) => Ok(Self::ChatCompletion { prompt, completion }),
            _ => Err("`prompt` and `completion` must both be texts or both be lists of messages".to_owned()),
        }
    }

    fn tokens(input_ids: Vec<i64>, labels: Option<serde_json::Value>) -> Result<Self, String> {
        let to_id = |id: i64| u32::try_from(id).map_err(|_| format!("`input_ids` has {id}, which is not a token id"));
        let input_ids = input_ids.into_iter().map(to_id).collect::<Result<Vec<_>, _>>()?;
        let labels: Option<Vec<i64>> = match labels {
            None | Some(serde_json::Value::Null) => None,
            Some(labels) => Some(serde_json::from_value(labels).map_err(|error| format!("`labels`: {error}"))?),
        };
        if let Some(labels) = &labels
            && labels.len() != input_ids.len()
        {
            return Err(format!("{} `labels` for {} `input_ids`", labels.len(), input_ids.len()));
        }
        Ok(Self::Tokens { input_ids, labels })
    }
}
