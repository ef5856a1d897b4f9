//! What a training loop asks of a model: variables, counts, and whether every gradient arrived.

use super::PeftModel;
use crate::{Adaptable, Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId, Var};
use std::collections::HashSet;
use std::fmt;

/// How many numbers a model has, and how many of them are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParamCounts {
    /// Numbers that an optimiser changes.
    pub trainable: usize,
    /// Those and the frozen ones of the base model. The fixed tensors of an adapter (such as TinyLoRA's A, B and P) do not count.
    pub total: usize,
}

/// PEFT's line: `trainable params: 13 || all params: 134,515,021 || trainable%: 0.0000`.
impl fmt::Display for ParamCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.trainable as f64 / self.total.max(1) as f64;
        let (trainable, total) = (grouped(self.trainable), grouped(self.total));
        write!(f, "trainable params: {trainable} || all params: {total} || trainable%: {percent:.4}")
    }
}

/// A number with a comma before every group of three digits.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl<M: Adaptable> PeftModel<M> {
    /// The trainable parameters of the active adapters with their names in checkpoints, in key order.
    ///
    /// When several adapters are active, each name has its adapter's in front.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        let active: Vec<&str> = self.active().collect();
        let adapters = self.adapters.iter().filter(|a| active.contains(&&*a.name));
        let mut all = vec![];
        for adapter in adapters {
            for (key, var) in adapter.params.trainable() {
                let name = if active.len() > 1 { format!("{}/{key}", adapter.name) } else { key.to_string() };
                all.push((name, var.clone()));
            }
        }
        all
    }

    /// The trainable variables of the active adapters, in key order, ready for an optimiser.
    pub fn vars(&self) -> Vec<Var> {
        self.trainable().into_iter().map(|(_, var)| var).collect()
    }

    /// Checks after a backward pass that a gradient reached every trainable of the active adapters.
    ///
    /// candle's optimisers skip a variable without a gradient, so a broken graph trains nothing and says nothing; this says so.
    ///
    /// # Errors
    /// [`Error::MissingGradients`] with the names of all that got none.
    pub fn audit_gradients(&self, grads: &GradStore) -> Result<()> {
        let dead: Vec<String> =
            self.trainable().into_iter().filter(|(_, var)| grads.get(var).is_none()).map(|(name, _)| name).collect();
        if dead.is_empty() { Ok(()) } else { Err(Error::MissingGradients(dead)) }
    }

    /// Counts parameters; a weight shared by two layers counts once.
    pub fn param_counts(&self) -> Result<ParamCounts> {
        let trainable = self.vars().iter().map(|v| v.elem_count()).sum();
        let (mut frozen, mut seen) = (0, HashSet::<TensorId>::new());
        let mut count = |tensor: &Tensor| frozen += if seen.insert(tensor.id()) { tensor.elem_count() } else { 0 };
        self.look(|_, host| {
            count(host.base().stored()?);
            host.bias().map(&mut count);
            Ok(())
        })?;
        Ok(ParamCounts { trainable, total: frozen + trainable })
    }
}
