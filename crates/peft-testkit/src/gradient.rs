//! Gradients compared with finite differences of the loss.

use crate::assert::{Mismatch, values};
use crate::tiny::noise;
use candle_core::{DType, Result as CandleResult, Tensor, Var};

/// How many elements of one variable are moved one by one; all others only along a random direction.
const ELEMENTS: usize = 12;

/// Checks the gradient of a scalar loss with respect to each named variable.
///
/// Up to twelve elements of each variable are moved one by one, then all variables at once along random directions, so that no
/// element escapes. `loss` must be a smooth function of the variables alone: the same masks in every call. Compute it in f64;
/// f64 variables are compared much more closely than f32 ones. The variables have their old values afterwards.
///
/// # Errors
/// When a variable has no gradient, or one that is not the slope of the loss.
pub fn check(vars: &[(String, Var)], loss: &dyn Fn() -> CandleResult<Tensor>) -> Result<(), Mismatch> {
    let value = || loss()?.to_dtype(DType::F64)?.to_scalar::<f64>();
    let grads = loss()?.backward()?;
    let size = value()?.abs().max(1.0);
    let mut slopes = vec![];
    for (name, var) in vars {
        let Some(grad) = grads.get(var) else {
            return Err(Mismatch::new(format!("no gradient reached `{name}`")));
        };
        if grad.dims() != var.dims() {
            return Err(Mismatch::new(format!("`{name}` has shape {:?}, its gradient {:?}", var.dims(), grad.dims())));
        }
        slopes.push(values(grad)?);
    }
    for ((name, var), slopes) in vars.iter().zip(&slopes) {
        let scale = slopes.iter().fold(0.0, |m: f64, slope| m.max(slope.abs()));
        let stride = slopes.len().div_ceil(ELEMENTS).max(1);
        for i in (0..slopes.len()).step_by(stride) {
            let mut direction = vec![0.0; slopes.len()];
            direction[i] = 1.0;
            let expected = Rise::along(&[(var, direction)], &value)?;
            expected.check(&format!("`{name}` at {i}"), slopes[i], scale, size)?;
        }
    }
    for seed in 0..2 {
        let mut along = vec![];
        for (i, (_, var)) in vars.iter().enumerate() {
            let direction = noise(var.elem_count(), DType::F64, 77 + 1000 * seed + i as u64)?;
            along.push((var, direction.to_vec1::<f64>()?));
        }
        let expected = Rise::along(&along, &value)?;
        let directions = along.iter().flat_map(|(_, direction)| direction);
        let products = slopes.iter().flatten().zip(directions).map(|(slope, step)| slope * step);
        let (found, scale) = products.fold((0.0, 0.0), |(sum, size): (f64, f64), p| (sum + p, size + p.abs()));
        expected.check("along a random direction", found, scale, size)?;
    }
    Ok(())
}

/// How steeply the loss rises along a direction.
struct Rise {
    slope: f64,
    /// How far the slope may be off where the loss is strongly curved.
    uncertainty: f64,
    narrow: bool,
}

impl Rise {
    /// From central differences of two steps, extrapolated to none.
    fn along(along: &[(&Var, Vec<f64>)], value: &dyn Fn() -> CandleResult<f64>) -> CandleResult<Self> {
        let narrow = along.iter().any(|(var, _)| var.dtype() != DType::F64);
        let step = if narrow { 2f64.powi(-8) } else { 2f64.powi(-17) };
        let (coarse, fine) = (difference(along, step, value)?, difference(along, step / 2.0, value)?);
        Ok(Self { slope: (4.0 * fine - coarse) / 3.0, uncertainty: (fine - coarse).abs(), narrow })
    }

    fn check(&self, what: &str, found: f64, scale: f64, loss: f64) -> Result<(), Mismatch> {
        let (relative, absolute) = if self.narrow { (5e-3, 1e-4) } else { (1e-6, 1e-9) };
        let bound = relative * scale.max(self.slope.abs()) + absolute * loss + self.uncertainty;
        if (found - self.slope).abs() <= bound {
            return Ok(());
        }
        let slope = self.slope;
        Err(Mismatch::new(format!(
            "the gradient of {what} is {found:e}, but the loss rises by {slope:e} (tolerated: {bound:.1e})"
        )))
    }
}

fn difference(along: &[(&Var, Vec<f64>)], step: f64, value: &dyn Fn() -> CandleResult<f64>) -> CandleResult<f64> {
    let origin: Vec<Tensor> = along.iter().map(|(var, _)| var.copy()).collect::<Result<_, _>>()?;
    let at = |step: f64| {
        for ((var, direction), start) in along.iter().zip(&origin) {
            let change = (Tensor::from_slice(direction, var.shape(), var.device())? * step)?;
            var.set(&(start.to_dtype(DType::F64)? + change)?.to_dtype(var.dtype())?)?;
        }
        value()
    };
    let (above, below) = (at(step), at(-step));
    for ((var, _), start) in along.iter().zip(&origin) {
        var.set(start)?;
    }
    Ok((above? - below?) / (2.0 * step))
}
