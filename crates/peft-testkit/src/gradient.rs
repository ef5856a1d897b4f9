//! Gradients compared with finite differences of the loss.

use crate::assert::Mismatch;
use crate::tiny::noise;
use candle_core::{DType, Tensor, Var};

/// How many elements of one variable are moved one by one; all others only along a random direction.
const ELEMENTS: usize = 12;

/// Checks the gradient of a scalar loss with respect to each named variable.
///
/// Up to twelve elements of each variable are moved one by one, then all variables at once along random directions, so that no
/// element escapes. `loss` must be a function of the variables alone: the same masks in every call. Compute it in f64; f64
/// variables are compared much more closely than f32 ones.
///
/// # Errors
/// When a variable has no gradient, or one that is not the slope of the loss.
pub fn check(vars: &[(String, Var)], loss: &dyn Fn() -> candle_core::Result<Tensor>) -> Result<(), Mismatch> {
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
        slopes.push(crate::assert::values(grad)?);
    }
    for ((name, var), slopes) in vars.iter().zip(&slopes) {
        let scale = slopes.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        let stride = slopes.len().div_ceil(ELEMENTS).max(1);
        for i in (0..slopes.len()).step_by(stride) {
            let mut direction = vec![0.0; slopes.len()];
            direction[i] = 1.0;
            let (expected, moved) = difference(&[(var, direction)], &value)?;
            compare(&format!("`{name}` at {i}"), slopes[i] * moved[0][i], expected, scale, size, var.dtype())?;
        }
    }
    for seed in 0..2 {
        let mut along = vec![];
        for (i, (_, var)) in vars.iter().enumerate() {
            let direction = noise(var.elem_count(), DType::F64, 77 + 1000 * seed + i as u64)?.to_vec1::<f64>()?;
            along.push((var, direction));
        }
        let (expected, moved) = difference(&along, &value)?;
        let products = slopes.iter().flatten().zip(moved.iter().flatten()).map(|(slope, step)| slope * step);
        let (found, scale) = products.fold((0.0, 0.0), |(sum, size): (f64, f64), p| (sum + p, size + p.abs()));
        let narrow = vars.iter().any(|(_, var)| var.dtype() != DType::F64);
        let dtype = if narrow { DType::F32 } else { DType::F64 };
        compare("along a random direction", found, expected, scale, size, dtype)?;
    }
    Ok(())
}

/// The central difference of the loss along a direction, and how far each element really moved per unit of step: in a narrow
/// dtype not quite as far as it was told to.
fn difference(
    along: &[(&Var, Vec<f64>)],
    value: &dyn Fn() -> candle_core::Result<f64>,
) -> candle_core::Result<(f64, Vec<Vec<f64>>)> {
    let narrow = along.iter().any(|(var, _)| var.dtype() != DType::F64);
    let step = if narrow { 2f64.powi(-8) } else { 2f64.powi(-17) };
    let origin: Vec<Tensor> = along.iter().map(|(var, _)| var.copy()).collect::<Result<_, _>>()?;
    let mut moved = vec![];
    let mut ends = vec![];
    for sign in [1.0, -1.0] {
        let mut positions = vec![];
        for ((var, direction), start) in along.iter().zip(&origin) {
            let direction = Tensor::from_slice(direction, var.shape(), var.device())?;
            let target = (start.to_dtype(DType::F64)? + (direction * (sign * step))?)?.to_dtype(var.dtype())?;
            var.set(&target)?;
            positions.push(crate::assert::values(&target)?);
        }
        ends.push(value());
        moved.push(positions);
    }
    for ((var, _), start) in along.iter().zip(&origin) {
        var.set(start)?;
    }
    let mut ends = ends.into_iter();
    let (Some(up), Some(down)) = (ends.next(), ends.next()) else { candle_core::bail!("two ends were computed") };
    let (above, below) = (&moved[0], &moved[1]);
    let steps = above.iter().zip(below).map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b) / (2.0 * step)).collect());
    Ok(((up? - down?) / (2.0 * step), steps.collect()))
}

fn compare(what: &str, found: f64, expected: f64, scale: f64, loss: f64, dtype: DType) -> Result<(), Mismatch> {
    let (relative, absolute) = if dtype == DType::F64 { (1e-6, 1e-9) } else { (5e-3, 1e-4) };
    let bound = relative * scale.max(expected.abs()) + absolute * loss;
    if (found - expected).abs() <= bound {
        return Ok(());
    }
    Err(Mismatch::new(format!(
        "the gradient of {what} is {found:e}, but the loss rises by {expected:e} (tolerated: {bound:.1e})"
    )))
}
