//! Numbers in running text.

use super::value::Number;

/// A number at the beginning of a text.
pub(super) struct Scanned {
    /// Its value, unless it has too many digits.
    pub(super) number: Option<Number>,
    /// The bytes that it takes.
    pub(super) length: usize,
}

/// The last number of a text, unless that has too many digits.
pub(super) fn last_number(text: &str) -> Option<Number> {
    let (mut rest, mut before, mut last) = (text, None, None);
    while let Some(first) = rest.chars().next() {
        let length = match scan(rest, before) {
            Some(scanned) => {
                last = Some(scanned.number);
                scanned.length
            }
            None => first.len_utf8(),
        };
        before = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    last.flatten()
}

/// Reads `-$1,234.50%` or `3/4` at the beginning of `text`, where `before` is the character in front of it.
pub(super) fn scan(text: &str, before: Option<char>) -> Option<Scanned> {
    let mut rest = text;
    // In `16-3`, `5$-3$` and `COVID-19` it is no sign.
    let sign_fits =
        before.is_none_or(|c| !c.is_alphanumeric() && !is_currency(c) && !matches!(c, ')' | ']' | '}' | '%'));
    let currency_fits = before.is_none_or(|c| !c.is_ascii_digit());
    let mut negative = sign_fits && take(&mut rest, is_minus);
    let mut signed = negative || sign_fits && take(&mut rest, |c| c == '+');
    if take(&mut rest, |c| currency_fits && is_currency(c)) && !signed {
        negative = take(&mut rest, is_minus);
        signed = true;
    }
    let whole = whole_digits(rest);
    rest = &rest[whole.len()..];
    let decimals = match rest.strip_prefix('.').map(leading_digits) {
        // `.5` alone, but not the end of `1.2.5`, nor of dots.
        Some(decimals)
            if !decimals.is_empty()
                && (!whole.is_empty() || signed || before.is_none_or(|c| !c.is_alphanumeric() && c != '.')) =>
        {
            rest = &rest[1 + decimals.len()..];
            decimals
        }
        _ if whole.is_empty() => return None,
        _ => "",
    };
    let divisor = if decimals.is_empty() && before != Some('/') { divisor(rest) } else { None };
    if let Some(divisor) = divisor {
        rest = &rest[1 + divisor.len()..];
    }
    let number = Number::new(negative, whole, decimals, divisor);
    take(&mut rest, |c| c == '%');
    Some(Scanned { number, length: text.len() - rest.len() })
}

/// The digits behind a fraction bar, unless they are all zeros or another bar follows, as in a date.
fn divisor(text: &str) -> Option<&str> {
    let digits = leading_digits(text.strip_prefix('/')?);
    let after = text[1 + digits.len()..].strip_prefix('/');
    let is_divisor = digits.bytes().any(|digit| digit != b'0');
    (is_divisor && !after.is_some_and(|after| after.starts_with(|c: char| c.is_ascii_digit()))).then_some(digits)
}

/// The digits of a whole number, with separators between groups of three.
fn whole_digits(text: &str) -> &str {
    let plain = leading_digits(text);
    if plain.is_empty() || plain.len() > 3 {
        return plain;
    }
    let mut end = plain.len();
    let separator = text[end..].chars().next().filter(|c| matches!(c, ',' | '\u{a0}' | '\u{2009}' | '\u{202f}'));
    while let Some(group) = separator.and_then(|separator| text[end..].strip_prefix(separator)) {
        if leading_digits(group).len() != 3 {
            break;
        }
        end = text.len() - group.len() + 3;
    }
    &text[..end]
}

fn leading_digits(text: &str) -> &str {
    &text[..text.bytes().take_while(u8::is_ascii_digit).count()]
}

fn is_minus(c: char) -> bool {
    matches!(c, '-' | '−' | '–')
}

fn is_currency(c: char) -> bool {
    matches!(c, '$' | '£' | '€')
}

/// Takes the first character off a text if it fits.
fn take(text: &mut &str, fits: impl Fn(char) -> bool) -> bool {
    let mut chars = text.chars();
    let taken = chars.next().is_some_and(fits);
    if taken {
        *text = chars.as_str();
    }
    taken
}
