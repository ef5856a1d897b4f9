//! The blocks of a model, one after another.

use crate::sequence::Sequence;
use candle_core::{Result, Tensor};
use peft_core::{Adaptable, Walk, WalkMut};
use std::sync::Arc;

/// One block of a model.
pub(crate) trait Block: Adaptable + Clone + Send + Sync + 'static {
    /// What all blocks are given in one pass, beside the sequence; cheap to clone.
    type Shared: Clone + Send + Sync + 'static;

    fn forward(&self, x: &Tensor, shared: &Self::Shared, sequence: &mut Sequence<'_>) -> Result<Tensor>;
}

/// All blocks, shared with the graphs of passes that may run them again.
#[derive(Clone, Debug)]
pub(crate) struct Blocks<B>(Vec<Arc<B>>);

impl<B> FromIterator<B> for Blocks<B> {
    fn from_iter<I: IntoIterator<Item = B>>(blocks: I) -> Self {
        Self(blocks.into_iter().map(Arc::new).collect())
    }
}

impl<B: Block> Blocks<B> {
    /// The hidden states after the last block, from those before the first.
    pub(crate) fn forward(&self, hidden: Tensor, shared: &B::Shared, sequence: &mut Sequence<'_>) -> Result<Tensor> {
        let (mut hidden, mut rest) = (hidden, self.0.as_slice());
        for size in sequence.segments(self.0.len()) {
            let (segment, after) = rest.split_at(size);
            rest = after;
            let (segment, shared, sequence) = (segment.to_vec(), shared.clone(), sequence.without_cache());
            hidden = peft_nn::checkpoint(&hidden, move |x| {
                through(&segment, x.clone(), &shared, &mut sequence.without_cache())
            })?;
        }
        through(rest, hidden, shared, sequence)
    }
}

fn through<B: Block>(blocks: &[Arc<B>], x: Tensor, shared: &B::Shared, sequence: &mut Sequence<'_>) -> Result<Tensor> {
    blocks.iter().try_fold(x, |x, block| block.forward(&x, shared, sequence))
}

impl<B: Block> Adaptable for Blocks<B> {
    fn visit(&self, walk: &mut Walk<'_>) -> peft_core::Result<()> {
        self.0.iter().enumerate().try_for_each(|(i, block)| walk.child(&i.to_string(), &**block))
    }

    /// A block that a graph still holds is copied first, tensors apart: the graph is of the block as it was.
    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> peft_core::Result<()> {
        self.0.iter_mut().enumerate().try_for_each(|(i, block)| {
            let block: &mut B = Arc::make_mut(block);
            walk.child(&i.to_string(), block)
        })
    }
}
