use candle_core::{Result, Tensor};
use pulp::Simd;

use super::{NAME, SwiGlu};
use crate::cpu::simd::{Elementwise, Lanes};
use crate::cpu::{Element, dispatch_float, map, read, value};
use crate::graph::Value;

pub(super) fn forward(op: &SwiGlu) -> Result<Value> {
    dispatch_float!(NAME, op.gate, T => {
        let (gate, up) = (read(&op.gate)?, read(&op.up)?);
        let [y] = map(Activation, [gate.as_slice::<T>()?, up.as_slice::<T>()?]);
        Ok(value(y, op.gate.shape()))
    })
}

pub(super) fn backward(op: &SwiGlu, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    dispatch_float!(NAME, op.gate, T => {
        let (gate, up, grad) = (read(&op.gate)?, read(&op.up)?, read(grad)?);
        let inputs = [gate.as_slice::<T>()?, up.as_slice::<T>()?, grad.as_slice::<T>()?];
        let tensor = |elements: Vec<T>| value(elements, op.gate.shape()).into_tensor();
        Ok(match wanted {
            [true, true] => map(Gradients, inputs).map(|gradient| Some(tensor(gradient))),
            [true, false] => {
                let [dgate] = map(Gradients, inputs);
                [Some(tensor(dgate)), None]
            }
            [false, true] => {
                let [dup] = map(UpGradient, inputs);
                [None, Some(tensor(dup))]
            }
            [false, false] => [None, None],
        })
    })
}

#[derive(Clone, Copy)]
struct Activation;

impl Elementwise<2, 1> for Activation {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [gate, up]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
        [T::rounded(gate / ((-gate).exp() + 1.0)) * up]
    }
}

/// Of the gate and of the other operand.
#[derive(Clone, Copy)]
struct Gradients;

impl Elementwise<3, 2> for Gradients {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [gate, up, grad]: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 2] {
        let sigmoid = gate.sigmoid();
        let grad = grad * sigmoid;
        [grad * up * (gate * (1.0 - sigmoid) + 1.0), grad * gate]
    }
}

/// Of the gate alone.
impl Elementwise<3, 1> for Gradients {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, inputs: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 1] {
        let [dgate, _] = Elementwise::<3, 2>::apply::<S, T>(self, inputs);
        [dgate]
    }
}

/// Of the other operand alone.
#[derive(Clone, Copy)]
struct UpGradient;

impl Elementwise<3, 1> for UpGradient {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, inputs: [Lanes<S, T::Acc>; 3]) -> [Lanes<S, T::Acc>; 1] {
        let [_, dup] = Elementwise::<3, 2>::apply::<S, T>(Gradients, inputs);
        [dup]
    }
}
