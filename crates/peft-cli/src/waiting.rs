//! A sign of life while something takes its time.

use indicatif::ProgressBar;
use std::time::Duration;

/// Does something with a spinner beside a message on standard error; silent where that is no terminal.
pub(crate) fn waiting<T>(message: &'static str, work: impl FnOnce() -> T) -> T {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = work();
    spinner.finish_and_clear();
    result
}
