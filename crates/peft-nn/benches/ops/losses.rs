//! Cross-entropy of logits, and of hidden states with an output head.

use candle_core::{DType, Device, Tensor};
use criterion::Criterion;
use peft_nn::{IGNORE_INDEX, WeightLayout, cross_entropy, linear_cross_entropy};

use crate::{WIDTH, compare, random};

const VOCABULARY: usize = 49_152;
const POSITIONS: usize = 256;

pub(crate) fn all(criterion: &mut Criterion) {
    let labels = (0..POSITIONS as i64).map(|i| i * 191 % VOCABULARY as i64).collect::<Vec<_>>();
    let labels = Tensor::from_vec(labels, POSITIONS, &Device::Cpu).unwrap();
    compare(
        criterion,
        "cross_entropy",
        &[random((POSITIONS, VOCABULARY), DType::F32)],
        &[
            ("kernel", &|x| cross_entropy(&x[0], &labels, IGNORE_INDEX)?.mean()),
            ("candle", &|x| candle_nn::loss::cross_entropy(&x[0], &labels)),
        ],
    );
    let weight = random((VOCABULARY, WIDTH), DType::F32);
    compare(
        criterion,
        "linear_cross_entropy",
        &[random((POSITIONS, WIDTH), DType::F32)],
        &[
            ("kernel", &|x| {
                linear_cross_entropy(&x[0], &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?.mean()
            }),
            ("candle", &|x| candle_nn::loss::cross_entropy(&x[0].matmul(&weight.t()?)?, &labels)),
        ],
    );
}
