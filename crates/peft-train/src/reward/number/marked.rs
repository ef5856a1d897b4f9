//! The answer behind a marker.

const MARKERS: [&str; 5] =
    ["The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### "];

/// The line behind the last marker.
///
/// As in PEFT's `method_comparison`, but for one thing: there a marker that stands earlier in the list wins over one that stands
/// later in the text.
pub(super) fn after_marker(text: &str) -> Option<&str> {
    let text = text.trim();
    let start = MARKERS.iter().filter_map(|marker| Some(text.rfind(marker)? + marker.len())).max()?;
    let line = text[start..].trim_start().lines().next().unwrap_or_default();
    Some(trimmed(line.trim()))
}

/// Without what stands around an answer in running text. A per cent sign is no factor: data sets leave it out.
pub(super) fn trimmed(text: &str) -> &str {
    let around = [' ', '.', '!', '?', '$', '%'];
    let text = text.trim_end_matches(around);
    let inner = text.trim_start_matches(around);
    let before = &text[..text.len() - inner.len()];
    // The point of `.5` belongs to the number.
    let is_decimal =
        before.ends_with('.') && !before.ends_with("..") && inner.starts_with(|c: char| c.is_ascii_digit());
    if is_decimal { &text[before.len() - 1..] } else { inner }
}
