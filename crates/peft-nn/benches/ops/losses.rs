//! Cross-entropy of logits, and of hidden states with an output head.

use candle_core::{DType, Device, Tensor};
use criterion::Criterion;
use peft_nn::{IGNORE_INDEX, LowRank, OutputHead, WeightLayout, cross_entropy, linear_cross_entropy};

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
    compare(
        criterion,
        "linear_cross_entropy and weight",
        &[random((POSITIONS, WIDTH), DType::F32), weight.clone()],
        &[
            ("kernel", &|x| {
                linear_cross_entropy(&x[0], &x[1], WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?.mean()
            }),
            ("candle", &|x| candle_nn::loss::cross_entropy(&x[0].matmul(&x[1].t()?)?, &labels)),
        ],
    );
    let (a, b) = (random((16, WIDTH), DType::F32), random((VOCABULARY, 16), DType::F32));
    compare(
        criterion,
        "linear_cross_entropy and low-rank change",
        &[random((POSITIONS, WIDTH), DType::F32), a, b],
        &[
            ("kernel", &|x| {
                let change = LowRank::new(x[1].clone(), x[2].clone()).with_scale(2.0);
                let head = OutputHead::new(&weight, WeightLayout::OutIn).with_low_rank(Some(&change));
                head.cross_entropy(&x[0], &labels, IGNORE_INDEX)?.mean()
            }),
            ("candle", &|x| {
                let change = (x[0].matmul(&x[1].t()?)?.matmul(&x[2].t()?)? * 2.0)?;
                candle_nn::loss::cross_entropy(&(x[0].matmul(&weight.t()?)? + change)?, &labels)
            }),
        ],
    );
}
