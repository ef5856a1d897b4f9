//! The progress bar of a run.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

const TEMPLATE: &str = "{wide_bar} {pos}/{len} [{elapsed}<{eta}] {msg}";
const REDRAWS_PER_SECOND: u8 = 4;

/// A bar on standard error that counts steps and shows the latest numbers; nothing where that is not a terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar over `total` steps of which `done` were finished before, as after a resume.
    pub fn new(total: u64, done: u64) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.reset_eta();
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Self { bar }
    }

    /// A bar that is never shown.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// Whether nothing is shown.
    pub fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    /// Moves to the end of `step`, counted from 1, and shows its numbers.
    pub fn advance(&self, step: u64, loss: f64, learning_rate: f64) {
        self.advance_with(step, &format!("loss {loss:.4} lr {learning_rate:.2e}"));
    }

    /// Moves to the end of `step`, counted from 1, and shows a text.
    pub fn advance_with(&self, step: u64, text: &str) {
        self.bar.set_position(step);
        self.bar.set_message(text.to_owned());
    }

    /// Writes a line above the bar, or nothing where the bar is hidden.
    pub fn note(&self, line: &str) {
        self.bar.println(line);
    }
}

/// Leaves the bar on the screen as it stands.
impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}
