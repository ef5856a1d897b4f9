//! The values that options may have.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OptimizerArg {
    Adamw,
    Sgd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScheduleArg {
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ConversionArg {
    /// A LoRA folder as PEFT writes it
    Lora,
    /// A LoRA folder for MLX-LM
    Mlx,
    /// A LoRA file for llama.cpp
    Gguf,
    /// A compact checkpoint as PEFT lays it out, with its factors
    Peft,
    /// Only what was trained, for the same base model and this program
    Compact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CombinationArg {
    /// Sums of the factors of adapters of equal rank: cheap and rough
    Linear,
    /// The factors side by side: exact, with the sum of the ranks
    Cat,
    /// The nearest to the sum of the deltas that the rank allows
    Svd,
}

impl CombinationArg {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Svd => "svd",
        }
    }
}

fn number(text: &str, fits: impl Fn(f64) -> bool, wanted: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("not a number; it must be {wanted}"))?;
    if value.is_finite() && fits(value) { Ok(value) } else { Err(format!("it must be {wanted}")) }
}

pub(super) fn finite(text: &str) -> Result<f64, String> {
    number(text, |_| true, "a finite number")
}

pub(super) fn non_negative(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 0.0, "a number of at least 0")
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0, "a number above 0")
}

pub(super) fn probability(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0 && value <= 1.0, "above 0 and at most 1")
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=1.0).contains(&value), "from 0 to 1")
}

/// Bytes: a number with an optional unit of 1000 or, with an `i`, of 1024.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, f64); 7] =
        [("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)];
    let unit = UNITS.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let (count, unit) = unit.unwrap_or((text, 1.0));
    let count = number(count.trim_end(), |count| count > 0.0, "a size above 0, such as 500MB or 2GB")?;
    Ok((count * unit) as usize)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [("12", 12), ("7B", 7), ("1.5 KB", 1500), ("2MB", 2_000_000), ("1GiB", 1 << 30)] {
            assert_eq!(bytes(text), Ok(expected));
        }
        for text in ["", "GB", "-1GB", "0", "2TB", "two MB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
