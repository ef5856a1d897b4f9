//! What a program answers.

use serde_json::Value;

const SHOWN: usize = 60;

/// The reward that a line gives, or what is wrong with it.
pub(super) fn parse(line: &str) -> Result<f64, String> {
    let line = line.trim();
    let object = || serde_json::from_str::<Value>(line).ok()?.get("reward")?.as_f64();
    match line.parse().ok().or_else(object) {
        Some(value) if f64::is_finite(value) => Ok(value),
        Some(_) => Err(format!("answered {}, which is not finite", shown(line))),
        None => Err(format!("answered {}, which is neither a number nor {{\"reward\": number}}", shown(line))),
    }
}

/// The beginning of a text from outside, on one line and without control characters.
pub(super) fn shown(text: &str) -> String {
    let more = if text.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("`{}{more}`", text.chars().take(SHOWN).flat_map(char::escape_debug).collect::<String>())
}
