//! Learning-rate schedules, as `transformers.get_scheduler` computes them.

use crate::error::{Error, Result};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// Falls in a straight line to zero at the last step; the default of `transformers`.
    #[default]
    Linear,
    /// Falls along half a cosine wave to zero at the last step.
    Cosine,
}

impl ScheduleKind {
    const NAMES: [(&'static str, Self); 4] = [
        ("constant", Self::Constant),
        ("linear", Self::Linear),
        ("cosine", Self::Cosine),
        ("constant_with_warmup", Self::Constant),
    ];
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// Parses the names of `transformers`; `constant_with_warmup` is another name of `constant`, which takes a warm-up too.
impl FromStr for ScheduleKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            Error::option("schedule", format!("`{name}` is not one of {names}"))
        })
    }
}

/// A learning rate for every optimizer step of a run.
///
/// The rate rises in a straight line from zero over the warm-up, then follows its [`ScheduleKind`]. It is a function of
/// the step alone, so a resumed run needs nothing but its step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    learning_rate: f64,
    warmup_steps: usize,
    total_steps: usize,
}

impl Schedule {
    /// A schedule that peaks at `learning_rate` after `warmup_steps` of `total_steps`.
    ///
    /// # Errors
    /// On a rate that is negative or not finite, and on a warm-up that is longer than the run.
    pub fn new(kind: ScheduleKind, learning_rate: f64, warmup_steps: usize, total_steps: usize) -> Result<Self> {
        if !(learning_rate.is_finite() && learning_rate >= 0.0) {
            return Err(Error::option(
                "learning_rate",
                format!("{learning_rate} is not a finite number of at least 0"),
            ));
        }
        if warmup_steps > total_steps {
            let message = format!("{warmup_steps} warm-up steps do not fit into {total_steps} steps");
            return Err(Error::option("warmup_steps", message));
        }
        Ok(Self { kind, learning_rate, warmup_steps, total_steps })
    }

    /// The learning rate of the step after `step` finished ones: the first step of a run is step 0.
    ///
    /// With a warm-up the first step therefore has the rate 0, as in `transformers`.
    pub fn lr(&self, step: usize) -> f64 {
        self.learning_rate * self.factor(step)
    }

    fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = (self.total_steps - self.warmup_steps).max(1) as f64;
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => self.total_steps.saturating_sub(step) as f64 / decay_steps,
            ScheduleKind::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / decay_steps;
                // Past the last step the wave would rise again; the rate stays at zero instead.
                (0.5 * (1.0 + (PI * progress.min(1.0)).cos())).max(0.0)
            }
        }
    }
}
