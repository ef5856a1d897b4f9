//! Gradients summed over the micro-batches of a step.

use super::Trainables;
use super::elementwise::{Elementwise, Plus, Times};
use crate::error::{Error, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;

/// One gradient per variable, summed over any number of backward passes.
#[derive(Debug, Clone)]
pub struct Gradients {
    pub(super) trainables: Trainables,
    /// In the order of the variables; empty before the first backward pass.
    pub(super) tensors: Vec<Tensor>,
}

impl Gradients {
    /// The empty sum.
    pub fn new(trainables: Trainables) -> Self {
        Self { trainables, tensors: Vec::new() }
    }

    /// Adds `weight` times the gradients of one backward pass.
    ///
    /// The sum keeps no graph alive.
    ///
    /// # Errors
    /// Names the variables that the pass left without a gradient; the sum has not changed then.
    pub fn accumulate(&mut self, store: &GradStore, weight: f64) -> Result<()> {
        let found: Vec<_> = self.trainables.iter().map(|(name, var)| (name, store.get(var))).collect();
        let missing: Vec<String> =
            found.iter().filter(|(_, gradient)| gradient.is_none()).map(|(name, _)| (*name).to_owned()).collect();
        if !missing.is_empty() {
            return Err(peft_core::Error::MissingGradients(missing).into());
        }
        for (index, gradient) in found.into_iter().filter_map(|(_, gradient)| gradient).enumerate() {
            // Candle's gradients are tracked tensors: a sum of them would hold the graphs of every pass.
            let mut gradient = gradient.detach();
            if weight != 1.0 {
                [gradient] = Times(weight).apply([&gradient])?;
            }
            match self.tensors.get_mut(index) {
                Some(sum) => [*sum] = Plus.apply([sum, &gradient])?,
                None => self.tensors.push(gradient),
            }
        }
        Ok(())
    }

    /// The names and gradients, in the order of the variables; empty before the first pass.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.tensors.iter().zip(self.trainables.iter()).map(|(tensor, (name, _))| (name, tensor))
    }

    /// The gradients for an optimizer of `trainables`.
    pub(super) fn of(&self, trainables: &Trainables) -> Result<&[Tensor]> {
        if !self.trainables.is_same_set(trainables) {
            return Err(Error::Optimizer("the gradients belong to another set of trainables".to_owned()));
        }
        if self.tensors.is_empty() {
            return Err(Error::Optimizer("no gradients were accumulated".to_owned()));
        }
        Ok(&self.tensors)
    }
}
