//! The norm of all gradients together, and clipping by it.

use super::Gradients;
use super::elementwise::{Elementwise, Times, sum_of_squares};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

impl Gradients {
    /// The 2-norm of all gradients as one vector.
    ///
    /// # Errors
    /// Names the first variable whose gradient holds NaN or infinity.
    pub fn norm(&self) -> Result<f64> {
        let squares = match self.tensors.iter().all(|gradient| gradient.device().is_cpu()) {
            true => self.tensors.iter().map(sum_of_squares).collect::<candle_core::Result<Vec<_>>>()?,
            false => squares_on_device(&self.tensors)?,
        };
        let mut total = 0.0;
        for ((name, _), square) in self.iter().zip(squares) {
            if !square.is_finite() {
                return Err(Error::NonFiniteGradient(name.to_owned()));
            }
            total += square;
        }
        Ok(total.sqrt())
    }

    /// Scales all gradients so that their [`norm`](Self::norm) is at most `max_norm`, and returns the norm before.
    ///
    /// The factor is `max_norm / (norm + 1e-6)` where that is below 1, as in `torch.nn.utils.clip_grad_norm_`.
    ///
    /// # Errors
    /// When `max_norm` is not a positive number or a gradient is not finite; nothing has changed then.
    pub fn clip_norm(&mut self, max_norm: f64) -> Result<f64> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::option("max_norm", format!("{max_norm} is not a positive number")));
        }
        let norm = self.norm()?;
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            let scaled = self.tensors.iter().map(|gradient| Times(factor).apply([gradient]).map(|[scaled]| scaled));
            self.tensors = scaled.collect::<candle_core::Result<_>>()?;
        }
        Ok(norm)
    }
}

/// The sum of the squares of each tensor.
fn squares_on_device(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let mut squares = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        // In f64 a finite f32 gradient cannot overflow; Metal has no f64.
        let dtype = if tensor.device().is_metal() { DType::F32 } else { DType::F64 };
        squares.push(tensor.to_dtype(dtype)?.sqr()?.sum_all()?);
    }
    if squares.is_empty() {
        return Ok(vec![]);
    }
    // One transfer from the device for all of them.
    Ok(Tensor::stack(&squares, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?)
}
