//! Stochastic gradient descent.

use super::elementwise::{Elementwise, Real};
use super::state::{SavedState, key};
use super::{Gradients, Optimizer, Trainables};
use crate::error::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MOMENTUM_BUFFER: &str = "momentum_buffer";

/// The constants of [`Sgd`]; the defaults are those of `torch.optim.SGD`: neither momentum nor weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Weight of the previous update in the next one, in `[0, 1)`.
    pub momentum: f64,
    /// Weight decay, added to the gradient as `weight_decay * parameter`.
    pub weight_decay: f64,
}

impl SgdConfig {
    fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.momentum) {
            return Err(Error::option("momentum", format!("{} is not in [0, 1)", self.momentum)));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            let message = format!("{} is not a finite number of at least 0", self.weight_decay);
            return Err(Error::option("weight_decay", message));
        }
        Ok(())
    }
}

/// Gradient descent with optional momentum, in the order of operations of `torch.optim.SGD`.
#[derive(Debug)]
pub struct Sgd {
    trainables: Trainables,
    config: SgdConfig,
    /// Empty before the first step and without momentum.
    momentum_buffer: Vec<Tensor>,
}

impl Sgd {
    /// The optimizer before its first step.
    ///
    /// # Errors
    /// When a constant is out of range.
    pub fn new(trainables: Trainables, config: SgdConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { trainables, config, momentum_buffer: Vec::new() })
    }
}

impl Optimizer for Sgd {
    fn trainables(&self) -> &Trainables {
        &self.trainables
    }

    fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        let SgdConfig { momentum, weight_decay } = self.config;
        let gradients = gradients.of(&self.trainables)?;
        let (mut values, mut updates) = (Vec::with_capacity(gradients.len()), Vec::with_capacity(gradients.len()));
        for (index, ((_, var), gradient)) in self.trainables.iter().zip(gradients).enumerate() {
            let value = var.as_detached_tensor();
            let [value, update] = match self.momentum_buffer.get(index) {
                Some(buffer) => Moving { lr, weight_decay, momentum }.apply([&value, gradient, buffer])?,
                None => Resting { lr, weight_decay }.apply([&value, gradient])?,
            };
            values.push(value);
            updates.push(update);
        }
        // Everything has been computed: from here on a step cannot stop half way.
        for ((_, var), value) in self.trainables.iter().zip(&values) {
            var.set(value)?;
        }
        if momentum != 0.0 {
            self.momentum_buffer = updates;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let buffers = self.trainables.iter().zip(&self.momentum_buffer);
        Ok(buffers.map(|((name, _), buffer)| (key(name, MOMENTUM_BUFFER), buffer.clone())).collect())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut saved = SavedState::new(state);
        let has_buffers = self.config.momentum != 0.0 && !state.is_empty();
        let momentum_buffer = if has_buffers { saved.take_all(&self.trainables, MOMENTUM_BUFFER)? } else { Vec::new() };
        saved.finish()?;
        self.momentum_buffer = momentum_buffer;
        Ok(())
    }
}

/// A step without a previous update: from a variable and its gradient to the new variable and the update.
struct Resting {
    lr: f64,
    weight_decay: f64,
}

impl Elementwise<2, 2> for Resting {
    #[inline(always)]
    fn element<T: Real>(&self, [value, gradient]: [T; 2]) -> [T; 2] {
        let update = gradient + value * T::from_f64(self.weight_decay);
        [value - update * T::from_f64(self.lr), update]
    }

    fn composed(&self, [value, gradient]: [&Tensor; 2]) -> candle_core::Result<[Tensor; 2]> {
        let update = (gradient + (value * self.weight_decay)?)?;
        Ok([(value - (&update * self.lr)?)?, update])
    }
}

/// A step with momentum: from a variable, its gradient and the previous update to the new variable and update.
struct Moving {
    lr: f64,
    weight_decay: f64,
    momentum: f64,
}

impl Elementwise<3, 2> for Moving {
    #[inline(always)]
    fn element<T: Real>(&self, [value, gradient, buffer]: [T; 3]) -> [T; 2] {
        let decayed = gradient + value * T::from_f64(self.weight_decay);
        let update = buffer * T::from_f64(self.momentum) + decayed;
        [value - update * T::from_f64(self.lr), update]
    }

    fn composed(&self, [value, gradient, buffer]: [&Tensor; 3]) -> candle_core::Result<[Tensor; 2]> {
        let decayed = (gradient + (value * self.weight_decay)?)?;
        let update = ((buffer * self.momentum)? + decayed)?;
        Ok([(value - (&update * self.lr)?)?, update])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::elementwise::tests::assert_composed;

    #[test]
    fn one_pass_makes_the_numbers_of_the_composed_form() {
        for weight_decay in [0.0, 0.1] {
            assert_composed(&Resting { lr: 3e-3, weight_decay });
            assert_composed(&Moving { lr: 3e-3, weight_decay, momentum: 0.9 });
        }
    }
}
