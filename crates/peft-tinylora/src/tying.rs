//! Which modules share a trained vector.

/// How adapted modules fall into groups that share one trained vector.
///
/// `weight_tying` of 0 gives every module its own, 1 gives all of them the same. In between, runs of neighbouring modules in
/// visit order share one, and the last group takes the rest.
///
/// ```
/// use peft_tinylora::Groups;
///
/// let groups = Groups::new(10, 0.75); // Python's round(2.5) is 2
/// assert_eq!(groups.count(), 2);
/// assert_eq!((0..10).map(|i| groups.of(i)).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    count: usize,
    size: usize,
}

impl Groups {
    /// The groups of this many modules under a tying between 0 and 1.
    pub fn new(modules: usize, weight_tying: f64) -> Self {
        // Half to even, as Python rounds.
        let count = (modules as f64 * (1.0 - weight_tying)).round_ties_even() as usize;
        let count = count.clamp(1, modules.max(1));
        Self { count, size: (modules / count).max(1) }
    }

    /// The number of groups, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The group of the module at this position.
    pub fn of(&self, module: usize) -> usize {
        (module / self.size).min(self.count - 1)
    }
}
