use candle_core::{Result, Tensor};

use super::NAME;
use crate::cpu::simd::Sum;
use crate::cpu::{dispatch_float, map, read, value};
use crate::graph::Value;

pub(super) fn forward(x: &Tensor, y: &Tensor) -> Result<Value> {
    dispatch_float!(NAME, x, T => {
        let (a, b) = (read(x)?, read(y)?);
        let [sum] = map(Sum, [a.as_slice::<T>()?, b.as_slice::<T>()?]);
        Ok(value(sum, x.shape()))
    })
}
