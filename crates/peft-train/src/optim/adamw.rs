//! AdamW.

use super::elementwise::{Elementwise, Real};
use super::state::{SavedState, key};
use super::{Gradients, Optimizer, Trainables};
use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The constants of [`AdamW`]; the defaults are those of `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the running mean of the gradients, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the running mean of their squares, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: each step first scales the variable by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWConfig {
    fn validate(&self) -> Result<()> {
        for (option, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::option(option, format!("{beta} is not in [0, 1)")));
            }
        }
        for (option, value) in [("eps", self.eps), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::option(option, format!("{value} is not a finite number of at least 0")));
            }
        }
        Ok(())
    }
}

/// Adam with decoupled weight decay ([Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)), in the order of
/// operations of `torch.optim.AdamW`.
#[derive(Debug)]
pub struct AdamW {
    trainables: Trainables,
    config: AdamWConfig,
    step: u64,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
}

impl AdamW {
    /// The optimizer before its first step.
    ///
    /// # Errors
    /// When a constant is out of range.
    pub fn new(trainables: Trainables, config: AdamWConfig) -> Result<Self> {
        config.validate()?;
        let zeros = || trainables.iter().map(|(_, var)| var.zeros_like()).collect::<candle_core::Result<Vec<_>>>();
        let (exp_avg, exp_avg_sq) = (zeros()?, zeros()?);
        Ok(Self { trainables, config, step: 0, exp_avg, exp_avg_sq })
    }
}

impl Optimizer for AdamW {
    fn trainables(&self) -> &Trainables {
        &self.trainables
    }

    fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        let gradients = gradients.of(&self.trainables)?;
        let step = self.step + 1;
        let update = Update::new(self.config, step, lr);
        let count = gradients.len();
        let (mut values, mut exp_avg, mut exp_avg_sq) =
            (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
        for (index, ((_, var), gradient)) in self.trainables.iter().zip(gradients).enumerate() {
            let var = var.as_detached_tensor();
            let [value, m, v] = update.apply([&var, gradient, &self.exp_avg[index], &self.exp_avg_sq[index]])?;
            values.push(value);
            exp_avg.push(m);
            exp_avg_sq.push(v);
        }
        // Everything has been computed: from here on a step cannot stop half way.
        for ((_, var), value) in self.trainables.iter().zip(&values) {
            var.set(value)?;
        }
        (self.step, self.exp_avg, self.exp_avg_sq) = (step, exp_avg, exp_avg_sq);
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::from([("step".to_owned(), Tensor::new(self.step as i64, &Device::Cpu)?)]);
        for (index, (name, _)) in self.trainables.iter().enumerate() {
            state.insert(key(name, "exp_avg"), self.exp_avg[index].clone());
            state.insert(key(name, "exp_avg_sq"), self.exp_avg_sq[index].clone());
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut saved = SavedState::new(state);
        let step = saved.take("step")?.to_scalar::<i64>()?;
        let step = u64::try_from(step).map_err(|_| Error::Resume(format!("the saved optimizer step is {step}")))?;
        let exp_avg = saved.take_all(&self.trainables, "exp_avg")?;
        let exp_avg_sq = saved.take_all(&self.trainables, "exp_avg_sq")?;
        saved.finish()?;
        (self.step, self.exp_avg, self.exp_avg_sq) = (step, exp_avg, exp_avg_sq);
        Ok(())
    }
}

/// One step: from a variable, its gradient and both moments to the new variable and moments.
struct Update {
    /// What weight decay leaves of the variable.
    kept: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    step_size: f64,
    bias_correction2_sqrt: f64,
}

impl Update {
    fn new(AdamWConfig { beta1, beta2, eps, weight_decay }: AdamWConfig, step: u64, lr: f64) -> Self {
        Self {
            kept: 1.0 - lr * weight_decay,
            beta1,
            beta2,
            eps,
            step_size: lr / (1.0 - beta1.powf(step as f64)),
            bias_correction2_sqrt: (1.0 - beta2.powf(step as f64)).sqrt(),
        }
    }
}

impl Elementwise<4, 3> for Update {
    #[inline(always)]
    fn element<T: Real>(&self, [value, gradient, m, v]: [T; 4]) -> [T; 3] {
        let number = T::from_f64;
        let m = m + (gradient - m) * number(1.0 - self.beta1);
        let v = v * number(self.beta2) + gradient * gradient * number(1.0 - self.beta2);
        let denominator = v.sqrt() * number(1.0 / self.bias_correction2_sqrt) + number(self.eps);
        [value * number(self.kept) - m * number(self.step_size) / denominator, m, v]
    }

    fn composed(&self, [value, gradient, m, v]: [&Tensor; 4]) -> candle_core::Result<[Tensor; 3]> {
        let m = (m + ((gradient - m)? * (1.0 - self.beta1))?)?;
        let v = ((v * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?;
        let denominator = v.sqrt()?.affine(1.0 / self.bias_correction2_sqrt, self.eps)?;
        let value = ((value * self.kept)? - ((&m * self.step_size)? / denominator)?)?;
        Ok([value, m, v])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::elementwise::tests::assert_composed;

    #[test]
    fn one_pass_makes_the_numbers_of_the_composed_form() {
        for (weight_decay, step) in [(0.0, 1), (0.1, 7)] {
            assert_composed(&Update::new(AdamWConfig { weight_decay, ..AdamWConfig::default() }, step, 3e-3));
        }
    }
}
