//! What is asked, and whether the answer is right.

use crate::chat::Message;
use serde_json::{Map, Value};

/// Something to ask, and its answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Problem {
    /// What the model is given.
    pub prompt: Prompt,
    /// The right answer.
    pub answer: String,
    /// The other fields of the problem's row, for rewards that need more than the answer.
    pub fields: Map<String, Value>,
}

impl Problem {
    /// A problem without further fields.
    pub fn new(prompt: Prompt, answer: impl Into<String>) -> Self {
        Self { prompt, answer: answer.into(), fields: Map::new() }
    }

    /// The same problem with these fields.
    #[must_use]
    pub fn with_fields(mut self, fields: Map<String, Value>) -> Self {
        self.fields = fields;
        self
    }
}

/// What a model is given.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A text that the model continues.
    Text(String),
    /// Messages that the chat template turns into a text, up to where the assistant's turn begins.
    Chat(Vec<Message>),
}

impl Prompt {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Chat(_) => None,
        }
    }
}

/// Whether an answer is right, in two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The answer stands where it was asked for.
    pub strict: bool,
    /// The last number of the completion is the answer.
    pub flexible: bool,
}
