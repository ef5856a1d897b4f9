//! The secret that tells the Hub who is asking.

use std::fmt;

/// An access token. It is sent to the Hub and nowhere else, and nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token from text such as `hf_…`; none when there is nothing but white space.
    ///
    /// Line breaks around it, as files have them, are dropped.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// What goes into the `Authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text from elsewhere without the token, should it hold it.
    pub(crate) fn scrub(&self, text: &str) -> String {
        text.replace(&self.0, "…")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
