//! Comparisons of tensors that say what differs, where, and by how much.
//!
//! `check_` functions return a [`Mismatch`]; the `assert_` ones panic with it, at the caller's line.

use candle_core::{DType, Result as CandleResult, Tensor};
use std::fmt;

/// Two tensors that should agree and do not, or could not be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(String);

impl Mismatch {
    /// A mismatch from what there is to say about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl From<candle_core::Error> for Mismatch {
    fn from(error: candle_core::Error) -> Self {
        Self(format!("cannot compare: {error}"))
    }
}

/// The elements, row by row, widened to f64.
pub fn values(tensor: &Tensor) -> CandleResult<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The greatest magnitude of an element; 0 for an empty tensor, NaN when any element is.
pub fn largest(tensor: &Tensor) -> CandleResult<f64> {
    Ok(values(tensor)?.into_iter().fold(0.0, |m: f64, v| if m.is_nan() || v.abs() <= m { m } else { v.abs() }))
}

/// Checks that dtype, shape and every bit agree (`0.0` and `-0.0` do not).
pub fn check_same(what: &str, found: &Tensor, expected: &Tensor) -> Result<(), Mismatch> {
    if (found.dtype(), found.dims()) != (expected.dtype(), expected.dims()) {
        return Err(Mismatch(format!(
            "{what}: {:?} {:?}, expected {:?} {:?}",
            found.dtype(),
            found.dims(),
            expected.dtype(),
            expected.dims()
        )));
    }
    let (found, expected) = (values(found)?, values(expected)?);
    let differing: Vec<usize> = (0..found.len()).filter(|i| found[*i].to_bits() != expected[*i].to_bits()).collect();
    match differing.first() {
        None => Ok(()),
        Some(&i) => Err(Mismatch(format!(
            "{what}: {} of {} elements differ, first at {i}: {:e}, expected {:e}",
            differing.len(),
            found.len(),
            found[i],
            expected[i]
        ))),
    }
}

/// Checks that no element is further than `tolerance` from the expected one. NaN is further than anything.
pub fn check_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<(), Mismatch> {
    let bound = vec![tolerance; expected.elem_count()];
    check_within(what, found, expected, &bound)
}

/// Checks that no element is further off than `tolerance` times the greatest expected magnitude.
pub fn check_relatively_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<(), Mismatch> {
    check_close(what, found, expected, tolerance * largest(expected)?)
}

/// Checks each element against a bound of its own, row by row.
pub fn check_within(what: &str, found: &Tensor, expected: &Tensor, bounds: &[f64]) -> Result<(), Mismatch> {
    if found.dims() != expected.dims() {
        return Err(Mismatch(format!("{what}: shape {:?}, expected {:?}", found.dims(), expected.dims())));
    }
    let (found, expected) = (values(found)?, values(expected)?);
    let excess = |i: usize| {
        let distance = (found[i] - expected[i]).abs();
        if distance <= bounds[i] { 0.0 } else { distance / bounds[i] }
    };
    let off: Vec<usize> = (0..found.len()).filter(|i| excess(*i) != 0.0).collect();
    // NaN orders above every number here.
    let Some(worst) = off.iter().copied().max_by(|a, b| excess(*a).total_cmp(&excess(*b))) else { return Ok(()) };
    Err(Mismatch(format!(
        "{what}: {} of {} elements are too far off, worst at {worst}: {:e}, expected {:e} within {:.2e}",
        off.len(),
        found.len(),
        found[worst],
        expected[worst],
        bounds[worst]
    )))
}

/// Panics unless [`check_same`] is content.
#[track_caller]
pub fn assert_same(what: &str, found: &Tensor, expected: &Tensor) {
    expect(check_same(what, found, expected));
}

/// Panics unless [`check_close`] is content.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    expect(check_close(what, found, expected, tolerance));
}

/// Panics unless [`check_relatively_close`] is content.
#[track_caller]
pub fn assert_relatively_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    expect(check_relatively_close(what, found, expected, tolerance));
}

#[track_caller]
fn expect(verdict: Result<(), Mismatch>) {
    if let Err(mismatch) = verdict {
        panic!("{mismatch}");
    }
}
