//! Dropping a graph without recursion.
//!
//! Dropping the last tensor of a chain drops its operation, hence the operation's inputs, and so on: thousands of nested
//! drops overflow the stack. A node that is dropped hands its inputs over instead, and whoever started drops them in turn.

use std::cell::RefCell;
use std::mem;

use super::node::Input;

thread_local! {
    /// What waits to be dropped, while something is being dropped on this thread.
    static WAITING: RefCell<Option<Vec<Input>>> = const { RefCell::new(None) };
}

/// Drops these, and all that goes with them, one after another.
pub(super) fn release(inputs: Vec<Input>) {
    if inputs.is_empty() {
        return;
    }
    // At the end of a thread its list is gone, and the inputs drop where they are.
    let starts = WAITING.try_with(|waiting| match &mut *waiting.borrow_mut() {
        Some(waiting) => {
            waiting.extend(inputs);
            false
        }
        none => {
            *none = Some(inputs);
            true
        }
    });
    if starts == Ok(true) {
        while let Some(input) = next() {
            drop(input);
        }
    }
}

/// The next to drop; forgets the list when it is empty.
fn next() -> Option<Input> {
    let next = WAITING.try_with(|waiting| {
        let mut waiting = waiting.borrow_mut();
        let next = waiting.as_mut().and_then(Vec::pop);
        if next.is_none() {
            mem::take(&mut *waiting);
        }
        next
    });
    next.ok().flatten()
}
