use candle_core::{Result, bail};

use super::{IGNORE_INDEX, NAME};

/// What [`cross_entropy_with`](crate::cross_entropy_with) computes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CrossEntropyOptions {
    /// The label of positions that count for nothing: [`IGNORE_INDEX`] unless set.
    pub ignore_index: i64,
    /// What the logits are multiplied with, finite and above zero: one over the temperature, one unless set.
    pub logit_scale: f64,
    /// Whether the entropies of the distributions are computed as well: not unless set.
    pub entropies: bool,
}

impl Default for CrossEntropyOptions {
    fn default() -> Self {
        Self { ignore_index: IGNORE_INDEX, logit_scale: 1.0, entropies: false }
    }
}

impl CrossEntropyOptions {
    /// With another label for positions that count for nothing.
    #[must_use]
    pub fn with_ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignore_index = ignore_index;
        self
    }

    /// With logits multiplied by `scale`: one over the temperature. The gradient takes it into account.
    #[must_use]
    pub fn with_logit_scale(mut self, scale: f64) -> Self {
        self.logit_scale = scale;
        self
    }

    /// With the [entropies](crate::CrossEntropy::entropies).
    #[must_use]
    pub fn with_entropies(mut self) -> Self {
        self.entropies = true;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(self.logit_scale.is_finite() && self.logit_scale > 0.0) {
            bail!("{NAME}: the logit scale is {}, expected a finite number above zero", self.logit_scale);
        }
        Ok(())
    }
}
