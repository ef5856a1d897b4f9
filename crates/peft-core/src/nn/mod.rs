//! Drop-in hosts with the constructors and the `Module` implementation of candle-nn's layers.

mod embedding;
mod linear;
mod norm;

pub use embedding::Embedding;
pub use linear::{Linear, LinearMap};
pub use norm::{LayerNorm, RmsNorm};

use crate::{BaseWeight, Error, Result};
use candle_core::Tensor;

/// The dense tensor of a new base weight, if its shape is that of the old one.
fn same_shape(base: &BaseWeight, old: &Tensor) -> Result<Tensor> {
    let new = base.stored()?;
    if new.shape() == old.shape() {
        Ok(new.clone())
    } else {
        Err(Error::ShapeMismatch { key: "weight".into(), expected: old.shape().clone(), found: new.shape().clone() })
    }
}
