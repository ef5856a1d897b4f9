//! Hosts made from a `VarBuilder`, which reads their weights or, when a `VarMap` backs it, makes them.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use peft_core::Host;
use peft_core::nn::{Embedding, LayerNorm, Linear, RmsNorm};

/// Where a new weight is drawn from.
fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0.0, stdev }
}

fn bias(len: usize, vb: &VarBuilder<'_>) -> Result<Tensor> {
    vb.get_with_hints(len, "bias", Init::Const(0.0))
}

/// A linear layer with a weight `(output, input)`.
pub(crate) fn linear(input: usize, output: usize, has_bias: bool, stdev: f64, vb: &VarBuilder<'_>) -> Result<Linear> {
    let weight = vb.get_with_hints((output, input), "weight", normal(stdev))?;
    Ok(Linear::new(weight, if has_bias { Some(bias(output, vb)?) } else { None }))
}

/// GPT-2's linear layer with a weight `(input, output)` and a bias.
pub(crate) fn conv1d(input: usize, output: usize, stdev: f64, vb: &VarBuilder<'_>) -> Result<Linear> {
    let weight = vb.get_with_hints((input, output), "weight", normal(stdev))?;
    Ok(Linear::from_transposed(weight, Some(bias(output, vb)?)))
}

pub(crate) fn embedding(entries: usize, width: usize, stdev: f64, vb: &VarBuilder<'_>) -> Result<Embedding> {
    Ok(Embedding::new(vb.get_with_hints((entries, width), "weight", normal(stdev))?))
}

pub(crate) fn rms_norm(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<RmsNorm> {
    Ok(RmsNorm::new(vb.get_with_hints(width, "weight", Init::Const(1.0))?, eps))
}

pub(crate) fn layer_norm(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<LayerNorm> {
    let weight = vb.get_with_hints(width, "weight", Init::Const(1.0))?;
    Ok(LayerNorm::new(weight, Some(bias(width, vb)?), eps))
}

/// A residual connection: what a layer adds to its input.
pub(crate) fn residual(x: &Tensor, change: &Tensor) -> Result<Tensor> {
    peft_nn::add(x, change)
}

/// The output head: a weight of its own, or the very tensor of the token embedding when the two are tied.
pub(crate) fn output_head(tied: bool, embedding: &Embedding, stdev: f64, vb: &VarBuilder<'_>) -> Result<Linear> {
    let head = if tied {
        Linear::new(embedding.base().stored()?.clone(), None)
    } else {
        let spec = embedding.spec();
        linear(spec.cols, spec.rows, false, stdev, &vb.pp("lm_head"))?
    };
    Ok(head.output_head())
}

/// Where the body of a model is: below `prefix`, unless the weights were saved without their head and have no prefix.
pub(crate) fn body<'a>(vb: &VarBuilder<'a>, prefix: &str, embedding: &str) -> VarBuilder<'a> {
    let prefixed = vb.pp(prefix);
    if vb.contains_tensor(embedding) && !prefixed.contains_tensor(embedding) { vb.clone() } else { prefixed }
}
