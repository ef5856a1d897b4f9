//! Optimizers with PyTorch's arithmetic, and the gradients that feed them.
//!
//! [`Trainables`] names the variables of a run, [`Gradients`] sums, scales and clips their gradients, an [`Optimizer`]
//! updates the variables. Unlike candle's optimizers these refuse a variable without a gradient instead of skipping it,
//! and hand out their state for an exact resume.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use peft_train::optim::{AdamW, AdamWConfig, Gradients, Optimizer, Trainables};
//!
//! # fn main() -> peft_train::Result<()> {
//! let weight = Var::new(&[3f32, -2.], &Device::Cpu)?;
//! let trainables = Trainables::new([("weight".to_owned(), weight.clone())])?;
//! let mut optimizer = AdamW::new(trainables.clone(), AdamWConfig::default())?;
//! for _ in 0..4 {
//!     let loss = weight.sqr()?.sum_all()?;
//!     let mut gradients = Gradients::new(trainables.clone());
//!     gradients.accumulate(&peft_nn::backward(&loss)?, 1.0)?;
//!     gradients.clip_norm(1.0)?;
//!     optimizer.step(&gradients, 0.1)?;
//! }
//! assert!(weight.to_vec1::<f32>()?[0] < 2.7);
//! # Ok(())
//! # }
//! ```

mod adamw;
mod clip;
mod elementwise;
mod gradients;
mod sgd;
mod state;
mod trainables;

pub use adamw::{AdamW, AdamWConfig};
pub use gradients::Gradients;
pub use sgd::{Sgd, SgdConfig};
pub use trainables::Trainables;

use crate::error::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// An update rule with its state.
pub trait Optimizer: fmt::Debug {
    /// The variables it updates.
    fn trainables(&self) -> &Trainables;

    /// Updates every variable in place, at the learning rate `lr`.
    ///
    /// # Errors
    /// When `gradients` belong to other [`Trainables`] or are empty. No variable has changed then.
    fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()>;

    /// The state as tensors, named `PARAMETER.QUANTITY` with PyTorch's names of the quantities.
    ///
    /// A snapshot: later steps do not change these tensors.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Replaces the state by one that [`state`](Self::state) returned, so that the run continues bit for bit.
    ///
    /// # Errors
    /// On tensors that are missing, left over, or of another shape or dtype. The state has not changed then.
    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}

/// The choice of an optimizer and its constants, without the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "optimizer", rename_all = "lowercase")]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// [`AdamW`].
    AdamW(AdamWConfig),
    /// [`Sgd`].
    Sgd(SgdConfig),
}

impl OptimizerConfig {
    /// The optimizer of these variables, at its first step.
    pub fn build(self, trainables: Trainables) -> Result<Box<dyn Optimizer>> {
        Ok(match self {
            Self::AdamW(config) => Box::new(AdamW::new(trainables, config)?),
            Self::Sgd(config) => Box::new(Sgd::new(trainables, config)?),
        })
    }
}
