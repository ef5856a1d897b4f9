//! How large the factors of a converted layer may be.

use peft_core::{Error, Result};

/// What decides the rank of each module of a LoRA that another adapter is converted to.
///
/// No rank is ever padded: a delta that is a product of smaller factors than asked for keeps those, and stays exact.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Rank {
    /// The layer's own factors, so that nothing is lost; for methods whose delta is a product of two factors.
    #[default]
    Exact,
    /// At most this many singular directions, the same number in every module.
    Fixed(usize),
    /// The fewest singular directions that hold this share of the delta's energy, the sum of its squared singular values: above
    /// 0 and at most 1. The relative error of a module is then at most `sqrt(1 - share)`. Ranks differ from module to module.
    ///
    /// This is what a `float` means to PEFT's `convert_to_lora`. Energies are told apart to the precision of the decomposition: f64
    /// for products of two factors, and f32, as in PEFT, for all else.
    Threshold(f64),
}

impl Rank {
    /// Checks what can be checked without a module.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Fixed(0) => Err(Error::conversion("the rank is 0; it must be a positive integer")),
            Self::Threshold(share) if !(share > 0.0 && share <= 1.0) => {
                Err(Error::conversion(format!("the threshold is {share}; it must be above 0 and at most 1")))
            }
            _ => Ok(()),
        }
    }

    /// Checks a rank against a `(rows, cols)` weight: no delta of it has more directions than its shorter side.
    pub(super) fn check_fits(self, rows: usize, cols: usize) -> Result<()> {
        let most = rows.min(cols);
        match self {
            Self::Fixed(rank) if rank > most => Err(Error::conversion(format!(
                "the rank is {rank}, but a {rows} x {cols} weight allows no more than {most}"
            ))),
            _ => Ok(()),
        }
    }

    /// How many of these singular values, in descending order, to keep: at least one, and none that is zero beside the first.
    ///
    /// `rounding` is the relative error of a sum of their squares; what is smaller counts as zero, and as equal.
    pub(super) fn keep(self, singular_values: &[f64], rounding: f64) -> usize {
        let first = singular_values.first().copied().unwrap_or_default();
        // Squares of ratios neither overflow nor vanish.
        let ratios: Vec<f64> =
            singular_values.iter().map(|s| s / first).take_while(|ratio| *ratio > rounding).collect();
        let most = ratios.len().max(1);
        match self {
            Self::Exact => most,
            Self::Fixed(rank) => rank.min(most),
            Self::Threshold(share) => {
                let mut energies = ratios.iter().scan(0.0, |sum, ratio| {
                    *sum += ratio * ratio;
                    Some(*sum)
                });
                let total: f64 = ratios.iter().map(|ratio| ratio * ratio).sum();
                let wanted = (share - rounding) * total;
                energies.position(|energy| energy >= wanted).map_or(most, |last| last + 1)
            }
        }
    }
}
