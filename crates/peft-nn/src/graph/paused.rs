//! Forward passes whose graph nobody will ask for.

use std::cell::{Cell, RefCell};

use candle_core::Tensor;

thread_local! {
    /// While this thread records nothing, and nobody wants to know what was read.
    static OFF: Cell<bool> = const { Cell::new(false) };
    /// While this thread records nothing: the variables that were read meanwhile.
    static READ: RefCell<Option<Vec<Tensor>>> = const { RefCell::new(None) };
}

/// Runs `f` on this thread without recording our operators, which save nothing then. Returns the variables that they would
/// have been joined to as well, each once, in the order in which they were read.
pub(crate) fn paused<R>(f: impl FnOnce() -> R) -> (R, Vec<Tensor>) {
    let restore = Restore(READ.replace(Some(vec![])));
    let result = f();
    let read = READ.take().unwrap_or_default();
    drop(restore);
    (result, read)
}

/// Runs `f` on this thread without recording our operators: their results are not tracked, and nothing is saved for a backward pass.
///
/// For inference, also with a model that is in training. Products with frozen matrices give each token the same bits there for any number of
/// tokens, and take more of the processor for many of them than they would outside. What candle's own operations compute from variables is tracked as ever, and so is
/// a tensor that was tracked before.
pub fn without_graph<R>(f: impl FnOnce() -> R) -> R {
    struct Off(bool);
    impl Drop for Off {
        fn drop(&mut self) {
            OFF.set(self.0);
        }
    }
    let _restore = Off(OFF.replace(true));
    f()
}

/// Whether this thread runs in [`without_graph`].
pub(crate) fn is_off() -> bool {
    OFF.get()
}

/// Runs `f` recording, also inside of [`paused`].
pub(crate) fn resumed<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(READ.take());
    f()
}

/// Whether this thread records nothing. If so, notes the variables that `input` is or was computed from.
pub(crate) fn only_noted(input: &Tensor) -> bool {
    if is_off() {
        return true;
    }
    READ.with_borrow_mut(|read| {
        let Some(read) = read else { return false };
        if input.is_variable() {
            note(read, input);
        } else if input.track_op() {
            // The result of operations of candle's own, which go on recording.
            input.sorted_nodes().into_iter().rev().filter(|tensor| tensor.is_variable()).for_each(|v| note(read, v));
        }
        true
    })
}

fn note(read: &mut Vec<Tensor>, variable: &Tensor) {
    if read.iter().all(|other| other.id() != variable.id()) {
        read.push(variable.clone());
    }
}

/// Puts the state from before back, also after a panic.
struct Restore(Option<Vec<Tensor>>);

impl Drop for Restore {
    fn drop(&mut self) {
        READ.set(self.0.take());
    }
}
