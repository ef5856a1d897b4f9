//! The linear map written in matrix products and candle's own operations: the specification, and the path of f64 and of devices
//! without a kernel.

use candle_core::{DType, Result, Tensor};

use super::low_rank::Change;
use super::{Linear, WeightLayout};
use crate::graph::{Value, broadcast_add, matmul};

fn product(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    Ok(matmul(lhs, rhs)?.into_tensor())
}

impl Change {
    /// `x A^T`.
    fn low(&self, x: &Tensor) -> Result<Tensor> {
        product(&x.to_dtype(self.a.dtype())?, &self.a.t()?)
    }

    /// `x A^T M^T` of `x A^T`.
    fn mixed(&self, low: &Tensor) -> Result<Tensor> {
        match &self.mixing {
            Some(mixing) => product(low, &mixing.t()?),
            None => Ok(low.clone()),
        }
    }
}

pub(super) fn forward(op: &Linear, bias: Option<&Tensor>) -> Result<Value> {
    let mut value = matmul(op.x()?, &op.out_in()?.t()?)?;
    if let Some(bias) = bias {
        value = broadcast_add(value, bias)?;
    }
    let Some(change) = &op.change else { return Ok(value) };
    let mixed = change.mixed(&change.low(op.x()?)?)?;
    let term = (product(&mixed, &change.b.t()?)? * change.scale)?;
    let sum = (value.into_tensor().to_dtype(term.dtype())? + term)?;
    Ok(Value::Tensor(sum.to_dtype(op.dtype)?))
}

/// Of x, weight, bias, a, b and mixing.
pub(super) fn backward(op: &Linear, grad: &Tensor, wanted: [bool; 6]) -> Result<[Option<Value>; 6]> {
    let [wants_x, wants_weight, wants_bias, wants_a, wants_b, wants_mixing] = wanted;
    let mut dx = if wants_x { Some(matmul(grad, &op.out_in()?)?) } else { None };
    // In the layout in which the weight is stored.
    let dweight = match (wants_weight, op.layout) {
        (false, _) => None,
        (true, WeightLayout::OutIn) => Some(matmul(&grad.t()?, op.x()?)?),
        (true, WeightLayout::InOut) => Some(matmul(&op.x()?.t()?, grad)?),
    };
    let dbias = if wants_bias { Some(Value::Tensor(sum_leading(grad)?)) } else { None };
    let (mut da, mut db, mut dmixing) = (None, None, None);
    if let Some(change) = &op.change {
        let grad = (grad.to_dtype(change.a.dtype())? * change.scale)?;
        if wants_b {
            db = Some(matmul(&grad.t()?, &change.mixed(&change.low(op.x()?)?)?)?);
        }
        if wants_x || wants_a || wants_mixing {
            let dmixed = product(&grad, &change.b)?;
            if wants_mixing {
                dmixing = Some(matmul(&dmixed.t()?, &change.low(op.x()?)?)?);
            }
            let dlow = match &change.mixing {
                Some(mixing) => product(&dmixed, mixing)?,
                None => dmixed,
            };
            if wants_a {
                da = Some(matmul(&dlow.t()?, &op.x()?.to_dtype(dlow.dtype())?)?);
            }
            if let Some(through_weight) = dx.take() {
                let through_change = product(&dlow, &change.a)?;
                let sum = (through_weight.into_tensor().to_dtype(through_change.dtype())? + through_change)?;
                dx = Some(Value::Tensor(sum.to_dtype(op.dtype)?));
            }
        }
    }
    Ok([dx, dweight, dbias, da, db, dmixing])
}

/// The sum over the rows of a matrix, accumulated in f32 for the 16-bit types.
fn sum_leading(grad: &Tensor) -> Result<Tensor> {
    match grad.dtype() {
        DType::BF16 | DType::F16 => grad.to_dtype(DType::F32)?.sum(0)?.to_dtype(grad.dtype()),
        _ => grad.sum(0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{LowRank, cpu};
    use super::*;
    use crate::testing::{assert_close, sample};

    const F32: (DType, f64) = (DType::F32, 2e-6);
    const SIXTEEN_BIT: [(DType, f64); 2] = [(DType::BF16, 1.0 / 128.0), (DType::F16, 1.0 / 1024.0)];

    /// The kernel against the composed form in f64 on the same numbers: the kernel rounds once, the composed form in 16 bits often.
    fn check(layout: WeightLayout, (dtype, tolerance): (DType, f64), low_rank: DType, with_mixing: bool) {
        let (rows, inputs, outputs, r) = (37, 83, 61, 3);
        let tensor = |shape: (usize, usize), seed, dtype| {
            (sample(shape, seed, DType::F64) * 0.25).unwrap().to_dtype(dtype).unwrap()
        };
        let stored = if layout == WeightLayout::OutIn { (outputs, inputs) } else { (inputs, outputs) };
        let change = |dtype: DType| {
            let own = |shape, seed| tensor(shape, seed, low_rank).to_dtype(dtype).unwrap();
            let change = LowRank::new(own((r, inputs), 2), own((outputs, r), 3)).with_scale(0.5);
            Change::of(&if with_mixing { change.with_mixing(own((r, r), 4)) } else { change }).unwrap()
        };
        let op = |wide: bool| {
            let own = |t: Tensor| if wide { t.to_dtype(DType::F64).unwrap() } else { t };
            Linear {
                x: Some(own(tensor((rows, inputs), 0, dtype))),
                dtype: if wide { DType::F64 } else { dtype },
                weight: own(tensor(stored, 1, dtype)),
                layout,
                change: Some(change(if wide { DType::F64 } else { low_rank })),
            }
        };
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let bias = sample(outputs, 5, dtype);
        let (mut kernel, composed) = (op(false), op(true));
        let actual = cpu::forward(&mut kernel, Some(&bias)).unwrap().into_tensor();
        let expected = forward(&composed, Some(&wide(&bias))).unwrap().into_tensor();
        assert_eq!(actual.dtype(), dtype);
        assert_close(&wide(&actual), &expected, tolerance);

        let grad = tensor((rows, outputs), 6, dtype);
        let wanted = [true, true, true, true, true, with_mixing];
        let actual = cpu::backward(&kernel, &grad, wanted).unwrap();
        let expected = backward(&composed, &wide(&grad), wanted).unwrap();
        for (i, (actual, expected)) in actual.into_iter().zip(expected).enumerate() {
            assert_eq!(actual.is_some(), wanted[i]);
            let (Some(actual), Some(expected)) = (actual, expected) else { continue };
            let actual = actual.into_tensor();
            assert_eq!(actual.dtype(), if i < 3 { dtype } else { low_rank });
            let exact = if i < 3 { tolerance } else { if low_rank == DType::F32 { F32.1 } else { tolerance } };
            assert_close(&wide(&actual), &expected.into_tensor(), exact);
        }
    }

    #[test]
    fn the_kernel_computes_the_same() {
        for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
            for with_mixing in [false, true] {
                check(layout, F32, DType::F32, with_mixing);
                for sixteen_bit in SIXTEEN_BIT {
                    check(layout, sixteen_bit, DType::F32, with_mixing);
                    check(layout, sixteen_bit, sixteen_bit.0, with_mixing);
                }
            }
        }
    }

    #[test]
    fn only_what_is_wanted_is_computed() {
        let change = Change::of(&LowRank::new(sample((2, 5), 2, DType::F32), sample((4, 2), 3, DType::F32))).unwrap();
        let mut op = Linear {
            x: Some(sample((3, 5), 0, DType::F32)),
            dtype: DType::F32,
            weight: sample((4, 5), 1, DType::F32),
            layout: WeightLayout::OutIn,
            change: Some(change),
        };
        cpu::forward(&mut op, None).unwrap();
        let grad = sample((3, 4), 4, DType::F32);
        for i in 0..5 {
            let mut wanted = [false; 6];
            wanted[i] = true;
            for gradients in [cpu::backward(&op, &grad, wanted), backward(&op, &grad, wanted)] {
                assert_eq!(gradients.unwrap().map(|gradient| gradient.is_some()), wanted);
            }
        }
    }
}
