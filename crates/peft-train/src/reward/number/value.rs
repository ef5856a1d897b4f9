//! Numbers without rounding.

use super::scan::scan;

/// A fraction in lowest terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    negative: bool,
    numerator: u128,
    denominator: u128,
}

impl Number {
    /// The text as a number; `None` where it is something else, or more, or has too many digits for 128 bits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let scanned = scan(text, None)?;
        if scanned.length == text.len() { scanned.number } else { None }
    }

    /// A number from its digits. `whole` may hold separators between them; `decimals` are those behind the point.
    pub(super) fn new(negative: bool, whole: &str, decimals: &str, divisor: Option<&str>) -> Option<Self> {
        let decimals = decimals.trim_end_matches('0');
        let numerator = digits(whole.chars().chain(decimals.chars()))?;
        let scale = 10u128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
        let divisor = divisor.map_or(Some(1), |divisor| digits(divisor.chars()))?;
        let denominator = scale.checked_mul(divisor).filter(|&denominator| denominator > 0)?;
        let common = gcd(numerator, denominator);
        let negative = negative && numerator > 0;
        Some(Self { negative, numerator: numerator / common, denominator: denominator / common })
    }
}

fn digits(mut text: impl Iterator<Item = char>) -> Option<u128> {
    text.try_fold(0u128, |number, char| match char.to_digit(10) {
        Some(digit) => number.checked_mul(10)?.checked_add(u128::from(digit)),
        None => Some(number),
    })
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}
