//! Sharing out decompositions among threads.

use rayon::prelude::*;

/// From how many elements on one matrix keeps all threads busy: below, a product is over before they are awake.
const SHARED: usize = 1 << 19;
/// From how many elements on a matrix is worth all threads even when others wait for its turn: beside a few of that size, threads
/// would run out of matrices before they run out of work.
const HUGE: usize = 1 << 22;

/// The threads that a decomposition may use. The result does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Threads {
    /// The calling one: others decompose matrices of their own.
    One,
    /// All those of rayon's current pool.
    All,
}

impl Threads {
    /// Whether products of a matrix of this many elements are shared out.
    pub(super) fn share(self, elements: usize) -> bool {
        self == Self::All && elements >= SHARED
    }
}

/// Maps items whose work is a decomposition: small matrices side by side, a thread for each, and after them the huge ones one after
/// the other, with all threads for each. So every thread holds one matrix at a time, and none waits for more than one decomposition
/// in the end.
///
/// `elements` is the size of an item's matrix. Results are in the order of the items.
pub fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    elements: impl Fn(&T) -> usize + Sync,
    map: impl Fn(&T, Threads) -> R + Sync,
) -> Vec<R> {
    let huge = |item: &T| elements(item) >= HUGE;
    let small: Vec<Option<R>> =
        items.par_iter().map(|item| if huge(item) { None } else { Some(map(item, Threads::One)) }).collect();
    small.into_iter().zip(items).map(|(done, item)| done.unwrap_or_else(|| map(item, Threads::All))).collect()
}
