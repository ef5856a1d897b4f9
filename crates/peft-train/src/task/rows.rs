//! Problems from a file.

use super::problem::Problem;
use crate::data::BatchOrder;
use crate::error::{Error, Result};
use crate::fingerprint::Digest;
use crate::json_lines::{self, Object};
use std::path::Path;

/// Of so many rows one is held out where there is no file to measure with.
const HELD_OUT_EVERY: usize = 10;

/// The training problems of a file.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    problems: Vec<Problem>,
    demonstrated: Demonstrated,
}

/// Where the right completion of a problem is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Demonstrated {
    /// In this field.
    Field(&'static str),
    /// In this field, after a space that the prompt does not end with.
    AfterSpace(&'static str),
    /// In this field, or it is the answer.
    FieldOrAnswer(&'static str),
}

impl Rows {
    /// # Errors
    /// When there are none.
    pub(super) fn new(problems: Vec<Problem>, demonstrated: Demonstrated) -> Result<Self> {
        BatchOrder::new(problems.len(), 1, None)?;
        Ok(Self { problems, demonstrated })
    }

    pub(super) fn at(&self, seed: u64, index: u64) -> &Problem {
        let order = BatchOrder::new(self.problems.len(), 1, Some(seed)).map(|order| order.batches_from(index));
        let row = order.ok().and_then(|mut batches| batches.next()).map_or(0, |batch| batch[0]);
        &self.problems[row]
    }

    pub(super) fn demonstration(&self, problem: &Problem) -> Option<String> {
        let field = |name: &str| problem.fields.get(name).and_then(|value| value.as_str());
        let answer = || Some(problem.answer.as_str()).filter(|answer| !answer.is_empty());
        match self.demonstrated {
            Demonstrated::Field(name) => field(name).map(str::to_owned),
            Demonstrated::AfterSpace(name) => field(name).map(|text| format!(" {text}")),
            Demonstrated::FieldOrAnswer(name) => field(name).or_else(answer).map(str::to_owned),
        }
    }
}

/// Reads the problems to train on, those to measure with, and a number that stands for both.
///
/// `problem` makes a problem of a row or says what is wrong with it.
pub(super) fn read(
    train: &Path,
    eval: Option<&Path>,
    problem: &dyn Fn(Object) -> Result<Problem, String>,
) -> Result<(Vec<Problem>, Vec<Problem>, u64)> {
    let mut digest = Digest::default();
    let mut read = |path: &Path| {
        let mut problems = Vec::new();
        json_lines::read(path, &mut |_, row| {
            digest.text(&serde_json::Value::from(row.clone()).to_string());
            problems.push(problem(row)?);
            Ok(())
        })?;
        digest.word(problems.len() as u64);
        if problems.is_empty() { Err(Error::EmptyDataset(path.to_owned())) } else { Ok(problems) }
    };
    let rows = read(train)?;
    if let Some(eval) = eval {
        let eval = read(eval)?;
        return Ok((rows, eval, digest.finish()));
    }
    if rows.len() < HELD_OUT_EVERY {
        let message = format!(
            "{} has {} rows, and of every {HELD_OUT_EVERY} one is held out; name a file to measure with",
            train.display(),
            rows.len()
        );
        return Err(Error::option("task", message));
    }
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    for (index, row) in rows.into_iter().enumerate() {
        let last_of_ten = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1;
        if last_of_ten { held_out.push(row) } else { kept.push(row) }
    }
    Ok((kept, held_out, digest.finish()))
}
