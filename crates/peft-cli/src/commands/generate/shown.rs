//! The text of a generation as it is shown: up to a stop string.

/// Text that grows, and ends before the first of some strings.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    stops: &'a [String],
    /// All of it that is shown.
    text: String,
    /// What a stop string may have begun in.
    held: String,
    ended: bool,
}

impl<'a> Shown<'a> {
    pub(super) fn new(stops: &'a [String]) -> Self {
        Self { stops, text: String::new(), held: String::new(), ended: false }
    }

    /// Adds a piece; returns what can be shown of it and of those before.
    pub(super) fn push(&mut self, piece: &str) -> String {
        if self.ended {
            return String::new();
        }
        self.held.push_str(piece);
        let end = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        self.ended = end.is_some();
        self.show(end.unwrap_or_else(|| self.sure()))
    }

    /// What was held back, for no stop string will come.
    pub(super) fn finish(&mut self) -> String {
        if self.ended { String::new() } else { self.show(self.held.len()) }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Where the first end of the held text begins that a stop string begins with.
    fn sure(&self) -> usize {
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len())
    }

    fn show(&mut self, end: usize) -> String {
        let shown: String = self.held.drain(..end).collect();
        self.text.push_str(&shown);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut shown = Shown::new(&stops);
        let mut parts: Vec<String> = pieces.iter().map(|piece| shown.push(piece)).collect();
        parts.push(shown.finish());
        assert_eq!(parts.concat(), shown.text);
        (parts, shown.into_text())
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(show(&["\n\n", "END"], &["a", "b\n", "c E", "N", "D d", "e"]).1, "ab\nc ");
        assert_eq!(show(&["bc", "ab"], &["xabc"]).1, "x");
        assert_eq!(show(&[], &["a", "b"]).1, "ab");
    }

    #[test]
    fn nothing_is_shown_that_a_stop_string_may_take_back() {
        let (parts, text) = show(&["aab"], &["xa", "a", "a", "c", "aa"]);
        assert_eq!(parts, ["x", "", "a", "aac", "", "aa"]);
        assert_eq!(text, "xaaacaa");
        let (parts, _) = show(&["über"], &["dar", "ü", "b", "t"]);
        assert_eq!(parts, ["dar", "", "", "übt", ""]);
    }
}
