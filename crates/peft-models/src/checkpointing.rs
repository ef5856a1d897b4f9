//! Which activations of a training step are kept, and which are computed again.

/// What a forward pass keeps of the blocks for the backward; see [`ForwardOptions::with_checkpointing`].
///
/// A block that is not kept runs once more in the backward pass, which costs about a third of its time, and of it nothing
/// stays in memory but its input. Losses are the same to the bit whatever is kept; gradients of parameters that several
/// blocks share differ in rounding.
///
/// [`ForwardOptions::with_checkpointing`]: crate::ForwardOptions::with_checkpointing
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checkpointing {
    /// All blocks are kept.
    #[default]
    None,
    /// No block is kept.
    EveryBlock,
    /// No block is kept, and of `k` blocks that follow one another only the first one's input; 0 is as 1.
    Every(usize),
    /// The first `n` blocks are not kept, the others are.
    First(usize),
}

impl Checkpointing {
    /// The numbers of blocks that run as one and are not kept, from the first block on. Blocks after these are kept.
    pub(crate) fn segments(self, blocks: usize) -> Vec<usize> {
        let (through, size) = match self {
            Self::None => (0, 1),
            Self::EveryBlock => (blocks, 1),
            Self::Every(size) => (blocks, size.max(1)),
            Self::First(through) => (through.min(blocks), 1),
        };
        (0..through).step_by(size).map(|start| size.min(through - start)).collect()
    }
}

/// The bytes that a training step keeps for its backward, from the shapes alone: see
/// [`CausalLanguageModel::activations`](crate::CausalLanguageModel::activations).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Activations {
    /// Number of blocks.
    pub blocks: usize,
    /// What the operators of one block keep.
    pub block: usize,
    /// The input of a block.
    pub input: usize,
}

impl Activations {
    /// The bytes kept at most at a time, with the blocks that are being computed again.
    pub fn with(&self, checkpointing: Checkpointing) -> usize {
        let segments = checkpointing.segments(self.blocks);
        let kept = self.blocks - segments.iter().sum::<usize>();
        let largest = segments.iter().max().copied().unwrap_or(0);
        segments.len() * self.input + (kept + largest) * self.block
    }

    /// The fastest way that keeps no more than `bytes` at a time: as few blocks computed again as possible. When even
    /// computing all of them again takes more, that way which takes least.
    pub fn within(&self, bytes: usize) -> Checkpointing {
        let fewest = (0..=self.blocks).map(|n| if n == 0 { Checkpointing::None } else { Checkpointing::First(n) });
        let fits = fewest.into_iter().find(|checkpointing| self.with(*checkpointing) <= bytes);
        let all = || (1..=self.blocks).map(Checkpointing::Every).min_by_key(|checkpointing| self.with(*checkpointing));
        fits.or_else(all).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_blocks_that_are_not_kept() {
        assert!(Checkpointing::None.segments(5).is_empty());
        assert_eq!(Checkpointing::EveryBlock.segments(3), [1, 1, 1]);
        assert_eq!(Checkpointing::Every(2).segments(5), [2, 2, 1]);
        assert_eq!(Checkpointing::Every(0).segments(2), [1, 1]);
        assert_eq!(Checkpointing::Every(9).segments(5), [5]);
        assert_eq!(Checkpointing::First(2).segments(5), [1, 1]);
        assert_eq!(Checkpointing::First(9).segments(2), [1, 1]);
    }

    #[test]
    fn bytes_of_each_way() {
        let activations = Activations { blocks: 10, block: 100, input: 8 };
        assert_eq!(activations.with(Checkpointing::None), 1000);
        assert_eq!(activations.with(Checkpointing::EveryBlock), 80 + 100);
        assert_eq!(activations.with(Checkpointing::Every(4)), 24 + 400);
        assert_eq!(activations.with(Checkpointing::First(3)), 24 + 800);
    }

    #[test]
    fn the_fastest_way_within_a_budget() {
        let activations = Activations { blocks: 10, block: 100, input: 8 };
        assert_eq!(activations.within(1000), Checkpointing::None);
        // To compute one block again saves nothing: it is there again when its turn comes.
        assert_eq!(activations.within(999), Checkpointing::First(2));
        assert_eq!(activations.within(824), Checkpointing::First(3));
        assert_eq!(activations.within(823), Checkpointing::First(4));
        assert_eq!(activations.within(180), Checkpointing::First(10));
        assert_eq!(activations.within(0), Checkpointing::Every(1));
        // Where inputs are what counts, longer runs take less: the square root of the number of blocks.
        let activations = Activations { blocks: 16, block: 10, input: 10 };
        assert_eq!(activations.within(0), Checkpointing::Every(4));
    }
}
