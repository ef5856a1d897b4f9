//! Texts that end a generation.

use crate::error::{Error, Result};
use crate::tokenizer::{DecodeStream, Tokenizer};

/// The strings that end a text, and what turns ids into text.
#[derive(Debug, Clone)]
pub(super) struct StopStrings {
    tokenizer: Tokenizer,
    strings: Vec<String>,
}

impl StopStrings {
    pub(super) fn new(tokenizer: &Tokenizer, strings: Vec<String>) -> Result<Option<Self>> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::option("stop strings", "one of them is empty, and every text contains it"));
        }
        Ok((!strings.is_empty()).then(|| Self { tokenizer: tokenizer.clone(), strings }))
    }

    pub(super) fn watch(&self) -> Watch<'_> {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        Watch { stream: self.tokenizer.decode_stream(), strings: &self.strings, text: String::new(), longest }
    }
}

/// Looks for stop strings in one text as it grows.
pub(super) struct Watch<'a> {
    stream: DecodeStream<'a>,
    strings: &'a [String],
    /// The end of the text: all that a string could begin in.
    text: String,
    longest: usize,
}

impl Watch<'_> {
    /// Whether the text contains a stop string with this id.
    pub(super) fn ends_with(&mut self, id: u32) -> Result<bool> {
        let piece = self.stream.push(id)?;
        if piece.is_empty() {
            return Ok(false);
        }
        self.text.push_str(&piece);
        let found = self.strings.iter().any(|string| self.text.contains(string));
        let mut keep_from = self.text.len().saturating_sub(self.longest.saturating_sub(1));
        while !self.text.is_char_boundary(keep_from) {
            keep_from -= 1;
        }
        self.text.drain(..keep_from);
        Ok(found)
    }
}
