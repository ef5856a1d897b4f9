//! The numbers of a run, as series over its steps.

use crate::error::{Error, Result};
use crate::json_lines::{self, Object};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A value at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) step: f64,
    pub(super) value: f64,
    /// The ends of its interval, where one is known.
    pub(super) interval: Option<(f64, f64)>,
}

/// The series of a file by the `kind` of their lines and the name of their field; a field of a field is `outer.inner`.
#[derive(Debug, Default)]
pub(super) struct Series {
    by_name: BTreeMap<(String, String), Vec<Point>>,
    /// Names in the order of the file.
    order: Vec<(String, String)>,
    last_step: f64,
}

impl Series {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut series = Self::default();
        json_lines::read_growing(path, &mut |_, line| series.take(&line))?;
        if series.order.is_empty() { Err(Error::EmptyDataset(path.to_owned())) } else { Ok(series) }
    }

    fn take(&mut self, line: &Object) -> Result<(), String> {
        let kind = line.get("kind").and_then(Value::as_str).ok_or("has no `kind` that is a text")?;
        let step = line.get("step").and_then(Value::as_f64).ok_or("has no `step` that is a number")?;
        self.last_step = self.last_step.max(step);
        for (name, value) in line {
            match value {
                Value::Object(fields) => {
                    for (inner, value) in fields {
                        self.push(kind, &format!("{name}.{inner}"), step, value, None);
                    }
                }
                _ if name != "step" => self.push(kind, name, step, value, line.get(&format!("{name}_interval"))),
                _ => {}
            }
        }
        Ok(())
    }

    fn push(&mut self, kind: &str, name: &str, step: f64, value: &Value, interval: Option<&Value>) {
        let Some(value) = value.as_f64() else { return };
        let interval = interval.and_then(Value::as_array).and_then(|ends| match ends.as_slice() {
            [low, high] => low.as_f64().zip(high.as_f64()),
            _ => None,
        });
        let key = (kind.to_owned(), name.to_owned());
        let points = self.by_name.entry(key.clone()).or_default();
        if points.is_empty() {
            self.order.push(key);
        }
        points.push(Point { step, value, interval });
    }

    /// The points of a field; none where it never was a number.
    pub(super) fn of(&self, kind: &str, name: &str) -> &[Point] {
        self.by_name.get(&(kind.to_owned(), name.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// What there is, as kinds and names in the order of the file.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.order.iter().map(|(kind, name)| (kind.as_str(), name.as_str()))
    }

    pub(super) fn last_step(&self) -> f64 {
        self.last_step
    }

    /// Of each step the first number over the second: such as tokens a second.
    pub(super) fn quotient(&self, kind: &str, numerator: &str, denominator: &str) -> Vec<Point> {
        let by_step = |name| self.of(kind, name).iter().map(|point| (point.step.to_bits(), point.value));
        let denominators: BTreeMap<u64, f64> = by_step(denominator).collect();
        let quotient = |point: &Point| {
            let value = point.value / denominators.get(&point.step.to_bits())?;
            value.is_finite().then_some(Point { value, interval: None, ..*point })
        };
        self.of(kind, numerator).iter().filter_map(quotient).collect()
    }
}
