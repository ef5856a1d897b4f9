use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Multiply-adds that are not worth another thread.
pub(super) const SMALL: usize = 1 << 17;

/// Calls `task` for every index, on all threads if `parallel`. They begin in the order of the indices: the long ones
/// should come first.
pub(super) fn for_each_task(count: usize, parallel: bool, task: impl Fn(usize) + Sync + Send) {
    if !parallel {
        return (0..count).for_each(task);
    }
    let next = AtomicUsize::new(0);
    (0..count).into_par_iter().with_max_len(1).for_each(|_| task(next.fetch_add(1, Ordering::Relaxed)));
}
