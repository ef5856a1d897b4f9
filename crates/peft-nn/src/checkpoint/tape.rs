//! What a computation drew at random, so that it can be repeated.

use std::cell::RefCell;

use candle_core::{Result, bail};

/// The values that a computation drew, in their order.
#[derive(Default)]
pub(super) struct Tape(Vec<u64>);

/// A computation that this thread is in: the first one, or the repetition of one.
enum Running {
    Recording(Vec<u64>),
    Replaying { values: Vec<u64>, next: usize },
}

thread_local! {
    /// The innermost computation last.
    static RUNNING: RefCell<Vec<Running>> = const { RefCell::new(vec![]) };
}

/// A value that is made once for a computation and its repetitions.
///
/// Inside of the function of a [`checkpoint`](fn@super::checkpoint) the first run keeps what `make` gives, and the run in
/// the backward pass gets the same; everywhere else this is `make()`. What a dropout mask is drawn from belongs here.
///
/// # Errors
/// When a repetition asks for more values than the first run did.
pub fn remembered(make: impl FnOnce() -> u64) -> Result<u64> {
    let value = match replayed()? {
        Some(value) => value,
        None => make(),
    };
    RUNNING.with_borrow_mut(|running| {
        // Those outside of the repetition that gave the value are not asked.
        for running in running.iter_mut().rev() {
            match running {
                Running::Recording(values) => values.push(value),
                Running::Replaying { .. } => break,
            }
        }
    });
    Ok(value)
}

/// The next value of the innermost repetition, if this is inside of one. First runs inside of it take its values.
fn replayed() -> Result<Option<u64>> {
    RUNNING.with_borrow_mut(|running| {
        let innermost = running.iter_mut().rev().find_map(|running| match running {
            Running::Replaying { values, next } => Some((values, next)),
            Running::Recording(_) => None,
        });
        let Some((values, next)) = innermost else { return Ok(None) };
        let Some(&value) = values.get(*next) else {
            bail!("checkpoint: {} random values were drawn before, and more are again", values.len())
        };
        *next += 1;
        Ok(Some(value))
    })
}

impl Tape {
    /// Runs the computation for the first time.
    pub(super) fn record<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let (result, running) = inside(Running::Recording(vec![]), f);
        if let Some(Running::Recording(values)) = running {
            self.0 = values;
        }
        result
    }

    /// Runs it again.
    pub(super) fn replay<R>(&self, f: impl FnOnce() -> R) -> R {
        inside(Running::Replaying { values: self.0.clone(), next: 0 }, f).0
    }
}

fn inside<R>(running: Running, f: impl FnOnce() -> R) -> (R, Option<Running>) {
    /// Leaves the computation, also when `f` panics.
    struct Leave;

    impl Drop for Leave {
        fn drop(&mut self) {
            RUNNING.with_borrow_mut(Vec::pop);
        }
    }

    RUNNING.with_borrow_mut(|all| all.push(running));
    let leave = Leave;
    let result = f();
    std::mem::forget(leave);
    (result, RUNNING.with_borrow_mut(Vec::pop))
}
