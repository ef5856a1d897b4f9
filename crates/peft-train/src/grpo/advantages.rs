//! How much better a completion did than the others of its prompt.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Keeps rewards that are nearly the same from being blown up.
const EPSILON: f64 = 1e-4;

/// What the distance of a reward from its group's mean is divided by, as TRL names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScaleRewards {
    /// The standard deviation of the group's rewards (DeepSeekMath, arXiv 2402.03300).
    #[default]
    Group,
    /// The standard deviation of all rewards of the step.
    Batch,
    /// Nothing (Dr. GRPO, arXiv 2503.20783): a division by the group's deviation favours prompts that are almost always or almost
    /// never solved.
    None,
}

impl ScaleRewards {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Group, Self::Batch, Self::None];

    fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Batch => "batch",
            Self::None => "none",
        }
    }
}

impl fmt::Display for ScaleRewards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ScaleRewards {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::option("scale_rewards", format!("`{name}` is not one of {names}"))
        })
    }
}

/// The advantages of completions whose rewards stand group by group, `group_size` each; standard deviations are those of a sample.
pub fn advantages(rewards: &[f64], group_size: usize, scale: ScaleRewards) -> Vec<f64> {
    let batch = standard_deviation(rewards);
    let of_group = |group: &[f64]| {
        let mean = mean(group);
        let divisor = match scale {
            ScaleRewards::Group => standard_deviation(group) + EPSILON,
            ScaleRewards::Batch => batch + EPSILON,
            ScaleRewards::None => 1.0,
        };
        // Where all are the same, what rounding leaves of their distance from the mean is nothing to learn from.
        let same = group.iter().all(|reward| *reward == group[0]);
        group.iter().map(|reward| if same { 0.0 } else { (reward - mean) / divisor }).collect::<Vec<_>>()
    };
    rewards.chunks(group_size.max(1)).flat_map(of_group).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The square root of the unbiased variance; 0 of a single value.
pub(super) fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}
