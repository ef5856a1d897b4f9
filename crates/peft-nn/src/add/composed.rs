//! The sum written in candle's own operations: the specification, and the path of devices without a kernel.

use candle_core::{Result, Tensor};

pub(super) fn forward(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x + y
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::testing::{assert_same_bits_on_each_arch, assert_same_value, for_each_case, sample};

    #[test]
    fn the_kernel_computes_the_same() {
        for_each_case(|dtype, _, width| {
            let (x, y) = (sample((3, width), 0, dtype), sample((3, width), 1, dtype));
            assert_same_value(cpu::forward(&x, &y), forward(&x, &y), 0.0);
            assert_same_bits_on_each_arch(|| Ok(vec![cpu::forward(&x, &y)?.into_tensor()]));
            Ok(())
        });
    }
}
