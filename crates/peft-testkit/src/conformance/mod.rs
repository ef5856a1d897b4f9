//! Seven laws that every adapter method keeps.
//!
//! | | law |
//! |---|---|
//! | 1 | [`Law::Delta`]: `forward(x)` equals `(W + delta) x + b + delta_b` at inference, within the dtype's precision |
//! | 2 | [`Law::Repeatable`]: the same model and config give the same sites, keys, order and values |
//! | 3 | [`Law::Identity`]: a fresh identity-initialised adapter changes nothing |
//! | 4 | [`Law::Unmerge`]: merge then unmerge is bit-exact |
//! | 5 | [`Law::RoundTrip`]: save then load is bit-exact; extra, missing or misshapen tensors are refused |
//! | 6 | [`Law::Atomic`]: a failed inject, load or merge leaves the model untouched |
//! | 7 | [`Law::Gradient`]: every trainable gets a gradient that matches finite differences; inference builds no graph |
//!
//! A [`Case`] is a config on a [`TinyModel`](crate::tiny::TinyModel). [`Case::check`] runs all laws, [`Law::check`] one.

mod case;
mod delta;
mod files;
mod gradient;
mod merging;
mod snapshot;
mod start;
mod untouched;

pub use case::Case;

use crate::assert::Mismatch;
use std::fmt;

/// One of the seven promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// `forward(x)` equals `(W + delta) x` at inference.
    Delta,
    /// The same model and config give the same sites, keys, order and values.
    Repeatable,
    /// A fresh identity-initialised adapter changes nothing.
    Identity,
    /// Merge then unmerge is bit-exact.
    Unmerge,
    /// Save then load is bit-exact, and files that do not fit are refused.
    RoundTrip,
    /// What fails leaves the model untouched.
    Atomic,
    /// Gradients match finite differences, and inference builds no graph.
    Gradient,
}

impl Law {
    /// All laws, by number.
    pub const ALL: [Self; 7] =
        [Self::Delta, Self::Repeatable, Self::Identity, Self::Unmerge, Self::RoundTrip, Self::Atomic, Self::Gradient];

    /// The law's number, from 1 to 7.
    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// Checks this law alone.
    ///
    /// # Errors
    /// [`LawBroken`] saying where and how.
    pub fn check(self, case: &Case) -> Result<(), LawBroken> {
        let verdict = match self {
            Self::Delta => delta::check(case),
            Self::Repeatable => start::repeatable(case),
            Self::Identity => start::identity(case),
            Self::Unmerge => merging::check(case),
            Self::RoundTrip => files::check(case),
            Self::Atomic => untouched::check(case),
            Self::Gradient => gradient::check(case),
        };
        verdict.map_err(|Finding(finding)| LawBroken { law: self, case: case.to_string(), finding })
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delta => "forward(x) equals (W + delta) x",
            Self::Repeatable => "the same model and config give the same adapter",
            Self::Identity => "a fresh adapter changes nothing",
            Self::Unmerge => "merge then unmerge is bit-exact",
            Self::RoundTrip => "save then load is bit-exact, and what does not fit is refused",
            Self::Atomic => "what fails leaves the model untouched",
            Self::Gradient => "every trainable gets the right gradient, and inference builds no graph",
        })
    }
}

/// A method that does not keep a law.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LawBroken {
    /// The law.
    pub law: Law,
    /// The config and the model it was found with.
    pub case: String,
    /// What was found.
    pub finding: String,
}

impl fmt::Display for LawBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "law {} ({}) is broken: {}\nby {}", self.law.number(), self.law, self.finding, self.case)
    }
}

impl std::error::Error for LawBroken {}

/// What speaks against a method; made by `?` from the error of any operation that ought to have worked.
struct Finding(String);

type Verdict = Result<(), Finding>;

impl<E: std::error::Error> From<E> for Finding {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Speaks against the method unless `holds`.
fn ensure(holds: bool, finding: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Finding(finding())) }
}

/// Adds in which situation a mismatch was found.
fn when(situation: &str, verdict: Result<(), Mismatch>) -> Verdict {
    verdict.map_err(|mismatch| Finding(format!("{situation}: {mismatch}")))
}
