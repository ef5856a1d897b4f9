//! Telling how a transfer goes.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Told what happens during transfers. All methods do nothing unless written.
pub trait Progress: Debug + Send + Sync {
    /// A transfer begins, or goes on after `done` of `total` bytes are there already.
    fn begin(&self, file: &str, done: u64, total: u64) {
        let _ = (file, done, total);
    }

    /// This many bytes of the file in hand are there.
    fn at(&self, done: u64) {
        let _ = done;
    }

    /// The transfer is over, for better or worse.
    fn end(&self) {}

    /// Something failed that may pass; the next attempt comes after this pause.
    fn retry(&self, reason: &str, pause: Duration) {
        let _ = (reason, pause);
    }

    /// Something a user should know, in a line.
    fn note(&self, line: &str) {
        let _ = line;
    }
}

impl<P: Progress + ?Sized> Progress for Arc<P> {
    fn begin(&self, file: &str, done: u64, total: u64) {
        (**self).begin(file, done, total);
    }

    fn at(&self, done: u64) {
        (**self).at(done);
    }

    fn end(&self) {
        (**self).end();
    }

    fn retry(&self, reason: &str, pause: Duration) {
        (**self).retry(reason, pause);
    }

    fn note(&self, line: &str) {
        (**self).note(line);
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
