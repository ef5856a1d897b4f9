use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{Gelu, NAME};
use crate::cpu::simd::{Elementwise, Lanes};
use crate::cpu::{Element, dispatch_float, map, read, value};
use crate::graph::Value;

pub(super) fn forward(op: &Gelu) -> Result<Value> {
    dispatch_float!(NAME, op.x, T => {
        let x = read(&op.x)?;
        let [y] = map(Activation, [x.as_slice::<T>()?]);
        Ok(value(y, op.x.shape()))
    })
}

pub(super) fn backward(op: &Gelu, grad: &Tensor) -> Result<Tensor> {
    dispatch_float!(NAME, op.x, T => {
        let (x, grad) = (read(&op.x)?, read(grad)?);
        let [dx] = map(Gradient, [x.as_slice::<T>()?, grad.as_slice::<T>()?]);
        Ok(value(dx, op.x.shape()).into_tensor())
    })
}

#[derive(Clone, Copy)]
struct Activation;

impl Elementwise<1, 1> for Activation {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        let [probability, _] = x.normal();
        [x * probability]
    }
}

#[derive(Clone, Copy)]
struct Gradient;

impl Elementwise<2, 1> for Gradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x, grad]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        let [probability, density] = x.normal();
        [grad * x.mul_add(density, probability)]
    }
}
