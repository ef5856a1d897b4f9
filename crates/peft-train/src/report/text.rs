//! Text and numbers for a page.

use std::fmt::Write;

/// Text from outside as text of a page, whatever it is: nothing in it is markup, and what would be invisible or turn the direction
/// of writing is shown.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            _ if is_unseen(c) => {
                // Writing into a string cannot fail.
                let _ = write!(escaped, "&lt;U+{:04X}&gt;", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// Controls, direction marks, and characters without width.
fn is_unseen(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text, escaped, up to so many characters.
pub(super) fn excerpt(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => escape(text),
        Some((end, _)) => {
            format!("{}<em> … {} more characters</em>", escape(&text[..end]), text[end..].chars().count())
        }
    }
}

/// A number with four digits, and a power of ten where it is very large or small.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e6).contains(&size) {
        let text = format!("{value:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        format!("{}e{power}", without_zeros(digits))
    } else {
        let before_point = size.log10().floor().max(0.0) as usize + 1;
        let small = usize::from(size < 0.1) + usize::from(size < 0.01);
        without_zeros(&format!("{value:.*}", 4usize.saturating_sub(before_point) + small)).to_owned()
    }
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// A share as per cent.
pub(super) fn per_cent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Seconds as people say them.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{} s", number(seconds)),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}
