//! Activations, and sums and products of equal shapes.

use candle_core::DType;
use criterion::Criterion;
use peft_nn::{add, div_frozen, gelu, gelu_new, mul_frozen, swiglu};

use crate::{TOKENS, WIDE, compare, random};

pub(crate) fn all(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        let name = |operator: &str| format!("{operator} {}", dtype.as_str());
        let wide = || random((TOKENS, WIDE), dtype);
        compare(
            criterion,
            &name("swiglu"),
            &[wide(), wide()],
            &[("kernel", &|x| swiglu(&x[0], &x[1])), ("candle", &|x| x[0].silu()? * &x[1])],
        );
        compare(criterion, &name("gelu"), &[wide()], &[("kernel", &|x| gelu(&x[0])), ("candle", &|x| x[0].gelu_erf())]);
        compare(
            criterion,
            &name("add"),
            &[wide(), wide()],
            &[("kernel", &|x| add(&x[0], &x[1])), ("candle", &|x| &x[0] + &x[1])],
        );
        compare(
            criterion,
            &name("gelu_new"),
            &[wide()],
            &[("kernel", &|x| gelu_new(&x[0])), ("candle", &|x| x[0].gelu())],
        );
        let factors = wide();
        compare(
            criterion,
            &name("mul_frozen"),
            &[wide()],
            &[("kernel", &|x| mul_frozen(&x[0], &factors)), ("candle", &|x| &x[0] * &factors)],
        );
        compare(
            criterion,
            &name("div_frozen"),
            &[wide()],
            &[("kernel", &|x| div_frozen(&x[0], &factors)), ("candle", &|x| &x[0] / &factors)],
        );
    }
}
