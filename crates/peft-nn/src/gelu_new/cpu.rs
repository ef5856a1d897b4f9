use candle_core::{Result, Tensor};

use super::{CUBIC, GeluNew, NAME, inner_scale};
use crate::cpu::{Element, dispatch_float, map, read, sigmoid, value};
use crate::graph::Value;

pub(super) fn forward(op: &GeluNew) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => forward_typed::<T>(op))
}

pub(super) fn backward(op: &GeluNew, grad: &Tensor) -> Result<Tensor> {
    dispatch_float!(NAME, op.x, T => backward_typed::<T>(op, grad))
}

/// `u = sqrt(2 / pi) * (x + 0.044715 x^3)` and its slope. `(1 + tanh u) / 2` equals `sigmoid(2 u)`, which is cheaper
/// and, for negative `x`, free of cancellation.
fn inner<T: Element>(x: T::Acc) -> (T::Acc, T::Acc) {
    let (one, three, scale, cubic) = (T::acc(1.0), T::acc(3.0), T::acc(inner_scale()), T::acc(CUBIC));
    let cubic_square = cubic * x * x;
    (scale * x * (one + cubic_square), scale * (one + three * cubic_square))
}

fn forward_typed<T: Element>(op: &GeluNew) -> Result<Value> {
    let x = read(&op.x)?;
    let two = T::acc(2.0);
    let y = map([x.as_slice::<T>()?], |[x]: [T; 1]| {
        let x = x.widen();
        T::narrow(x * sigmoid(two * inner::<T>(x).0))
    });
    Ok(value(y, op.x.shape()))
}

fn backward_typed<T: Element>(op: &GeluNew, grad: &Tensor) -> Result<Tensor> {
    let (x, grad) = (read(&op.x)?, read(grad)?);
    let (one, two) = (T::acc(1.0), T::acc(2.0));
    let dx = map([x.as_slice::<T>()?, grad.as_slice::<T>()?], |[x, grad]: [T; 2]| {
        let x = x.widen();
        let (inner, slope) = inner::<T>(x);
        let sigmoid = sigmoid(two * inner);
        T::narrow(grad.widen() * sigmoid * (one + two * x * (one - sigmoid) * slope))
    });
    Ok(value(dx, op.x.shape()).into_tensor())
}
