//! What is shown of downloads and uploads.

use crate::output::note;
use candle_peft::hub::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const TEMPLATE: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// A bar for the file in hand, on standard error where that is a terminal, and lines for what a user should know.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    bar: Mutex<Option<ProgressBar>>,
}

impl Transfers {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Transfers {
    fn begin(&self, file: &str, done: u64, total: u64) {
        self.with(|bar| {
            let bar = bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(file.to_owned())
            });
            bar.set_position(done);
            // What was there before is no measure of the speed.
            bar.reset_eta();
        });
    }

    fn at(&self, done: u64) {
        self.with(|bar| bar.iter().for_each(|bar| bar.set_position(done)));
    }

    fn end(&self) {
        self.with(|bar| bar.take().iter().for_each(ProgressBar::finish_and_clear));
    }

    fn retry(&self, reason: &str, pause: Duration) {
        self.note(&format!("{reason}; trying again in {:.0} s", pause.as_secs_f64().ceil()));
    }

    fn note(&self, line: &str) {
        self.with(|bar| match bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        });
    }
}
