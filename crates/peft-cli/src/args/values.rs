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
