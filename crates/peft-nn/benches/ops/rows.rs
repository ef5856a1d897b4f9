//! Operators of rows: normalisation, softmax, rotary embedding, lookup.

use candle_core::{D, DType, Device, Tensor};
use criterion::Criterion;
use peft_nn::{RopeLayout, embedding, layer_norm, rms_norm, rope, rope_with_layout, softmax_last_dim};

use crate::{TOKENS, WIDTH, compare, random};

const EPS: f64 = 1e-5;

pub(crate) fn all(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        let name = |operator: &str| format!("{operator} {}", dtype.as_str());
        let x = || random((TOKENS, WIDTH), dtype);
        let (weight, bias) = (random(WIDTH, dtype), random(WIDTH, dtype));
        compare(
            criterion,
            &name("rms_norm"),
            &[x()],
            &[
                ("kernel", &|x| rms_norm(&x[0], &weight, EPS)),
                ("candle", &|x| candle_nn::ops::rms_norm_slow(&x[0], &weight, EPS as f32)),
            ],
        );
        compare(
            criterion,
            &name("rms_norm and weight"),
            &[x(), weight.clone()],
            &[
                ("kernel", &|x| rms_norm(&x[0], &x[1], EPS)),
                ("candle", &|x| candle_nn::ops::rms_norm_slow(&x[0], &x[1], EPS as f32)),
            ],
        );
        compare(
            criterion,
            &name("layer_norm"),
            &[x()],
            &[
                ("kernel", &|x| layer_norm(&x[0], &weight, Some(&bias), EPS)),
                ("candle", &|x| candle_nn::ops::layer_norm_slow(&x[0], &weight, &bias, EPS as f32)),
            ],
        );
        compare(
            criterion,
            &name("softmax"),
            &[x()],
            &[("kernel", &|x| softmax_last_dim(&x[0])), ("candle", &|x| candle_nn::ops::softmax(&x[0], D::Minus1))],
        );
        compare(
            criterion,
            &name("layer_norm, weight and bias"),
            &[x(), weight.clone(), bias.clone()],
            &[
                ("kernel", &|x| layer_norm(&x[0], &x[1], Some(&x[2]), EPS)),
                ("candle", &|x| candle_nn::ops::layer_norm_slow(&x[0], &x[1], &x[2], EPS as f32)),
            ],
        );
        let ids = (0..TOKENS as u32).map(|i| i * 31 % 4096).collect::<Vec<_>>();
        let ids = Tensor::from_vec(ids, TOKENS, &Device::Cpu).unwrap();
        compare(
            criterion,
            &name("embedding"),
            &[random((4096, WIDTH), dtype)],
            &[("kernel", &|x| embedding(&ids, &x[0])), ("candle", &|x| x[0].index_select(&ids, 0))],
        );
        let (heads, seq, head_dim) = (9, TOKENS, 64);
        let angles = random((seq, head_dim / 2), DType::F32);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        let (cos_like, sin_like) = (cos.to_dtype(dtype).unwrap(), sin.to_dtype(dtype).unwrap());
        compare(
            criterion,
            &name("rope"),
            &[random((1, heads, seq, head_dim), dtype)],
            &[
                ("kernel", &|x| rope(&x[0], &cos, &sin)),
                ("candle", &|x| candle_nn::rotary_emb::rope_slow(&x[0], &cos_like, &sin_like)),
            ],
        );
        compare(
            criterion,
            &name("rope interleaved"),
            &[random((1, heads, seq, head_dim), dtype)],
            &[
                ("kernel", &|x| rope_with_layout(&x[0], &cos, &sin, RopeLayout::Interleaved)),
                ("candle", &|x| candle_nn::rotary_emb::rope_i_slow(&x[0], &cos_like, &sin_like)),
            ],
        );
    }
}
