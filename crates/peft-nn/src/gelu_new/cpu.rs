use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{CUBIC, GeluNew, NAME, inner_scale};
use crate::cpu::simd::{Elementwise, Lanes, Real};
use crate::cpu::{Element, dispatch_float, map, read, value};
use crate::graph::Value;

pub(super) fn forward(op: &GeluNew) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => {
        let x = read(&op.x)?;
        let [y] = map(Activation, [x.as_slice::<T>()?]);
        Ok(value(y, op.x.shape()))
    })
}

pub(super) fn backward(op: &GeluNew, grad: &Tensor) -> Result<Tensor> {
    dispatch_float!(NAME, op.x, T => {
        let (x, grad) = (read(&op.x)?, read(grad)?);
        let [dx] = map(Gradient, [x.as_slice::<T>()?, grad.as_slice::<T>()?]);
        Ok(value(dx, op.x.shape()).into_tensor())
    })
}

/// `u = sqrt(2 / pi) * (x + 0.044715 x^3)` and its slope. `(1 + tanh u) / 2` equals `sigmoid(2 u)`, which is cheaper
/// and, for negative `x`, free of cancellation.
#[inline(always)]
fn inner<S: Simd, R: Real>(x: Lanes<S, R>) -> [Lanes<S, R>; 2] {
    let cubic_square = x * x * CUBIC;
    [x * inner_scale() * (cubic_square + 1.0), (cubic_square * 3.0 + 1.0) * inner_scale()]
}

#[derive(Clone, Copy)]
struct Activation;

impl Elementwise<1, 1> for Activation {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        let [inner, _] = inner(x);
        [x / ((inner * -2.0).exp() + 1.0)]
    }
}

#[derive(Clone, Copy)]
struct Gradient;

impl Elementwise<2, 1> for Gradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        let [inner, slope] = inner(x);
        let sigmoid = (inner * 2.0).sigmoid();
        [grad * sigmoid * (x * 2.0 * (1.0 - sigmoid) * slope + 1.0)]
    }
}
