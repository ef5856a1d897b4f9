//! Forward passes whose graph nobody will ask for.

use std::cell::Cell;

thread_local! {
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` on this thread without recording our operators: whatever they are given, they save nothing.
pub(crate) fn paused<R>(f: impl FnOnce() -> R) -> R {
    with(true, f)
}

/// Runs `f` recording, also inside of [`paused`].
pub(crate) fn resumed<R>(f: impl FnOnce() -> R) -> R {
    with(false, f)
}

pub(super) fn is_paused() -> bool {
    PAUSED.get()
}

fn with<R>(state: bool, f: impl FnOnce() -> R) -> R {
    /// Puts the old state back, also when `f` panics.
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            PAUSED.set(self.0);
        }
    }

    let _restore = Restore(PAUSED.replace(state));
    f()
}
