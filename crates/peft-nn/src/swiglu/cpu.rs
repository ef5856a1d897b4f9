use candle_core::{Result, Tensor};

use super::{NAME, SwiGlu};
use crate::cpu::{Element, dispatch_float, map, read, sigmoid, value};
use crate::graph::Value;

pub(super) fn forward(op: &SwiGlu) -> Result<Value> {
    dispatch_float!(NAME, op.gate, T => forward_typed::<T>(op))
}

pub(super) fn backward(op: &SwiGlu, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    dispatch_float!(NAME, op.gate, T => backward_typed::<T>(op, grad, wanted))
}

fn forward_typed<T: Element>(op: &SwiGlu) -> Result<Value> {
    let (gate, up) = (read(&op.gate)?, read(&op.up)?);
    let (gate, up) = (gate.as_slice::<T>()?, up.as_slice::<T>()?);
    let y = map([gate, up], |[gate, up]: [T; 2]| {
        let gate = gate.widen();
        let silu = T::narrow(gate * sigmoid(gate));
        T::narrow(silu.widen() * up.widen())
    });
    Ok(value(y, op.gate.shape()))
}

fn backward_typed<T: Element>(op: &SwiGlu, grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let (gate, up, grad) = (read(&op.gate)?, read(&op.up)?, read(grad)?);
    let (gate, up, grad) = (gate.as_slice::<T>()?, up.as_slice::<T>()?, grad.as_slice::<T>()?);
    let one = T::acc(1.0);
    let dgate = wanted[0].then(|| {
        map([gate, up, grad], |[gate, up, grad]: [T; 3]| {
            let (gate, sigmoid) = (gate.widen(), sigmoid(gate.widen()));
            T::narrow(grad.widen() * up.widen() * sigmoid * (one + gate * (one - sigmoid)))
        })
    });
    let dup = wanted[1].then(|| {
        map([gate, grad], |[gate, grad]: [T; 2]| T::narrow(grad.widen() * gate.widen() * sigmoid(gate.widen())))
    });
    Ok([dgate, dup].map(|gradient| gradient.map(|elements| value(elements, op.gate.shape()).into_tensor())))
}
