//! IA3 at one site.

use candle_core::{Result as CandleResult, Tensor};
use peft_core::{AdapterLayer, HostView, Mode, Param, Result};
use peft_nn::mul_frozen;

/// `l * (W x + b)`, or `W (l * x) + b` in a feed-forward layer.
#[derive(Debug)]
pub(crate) struct Ia3Layer {
    /// `(rows, 1)`; `(1, cols)` in a feed-forward layer.
    l: Param,
    feedforward: bool,
}

impl Ia3Layer {
    pub(crate) fn new(l: Param, feedforward: bool) -> Self {
        Self { l, feedforward }
    }

    /// Features `(.., n)`, or a vector `(n)`, times the trained vector, in the features' dtype.
    fn scale(&self, features: &Tensor, mode: Mode) -> CandleResult<Tensor> {
        let l = self.l.read(mode).flatten_all()?;
        let wide = features.to_dtype(l.dtype())?;
        let scaled = if mode == Mode::Train && !wide.track_op() {
            // Features that nothing trained has touched yet: candle's product would compute and keep their gradient.
            mul_frozen(&l.broadcast_as(wide.shape())?, &wide)?
        } else {
            wide.broadcast_mul(&l)?
        };
        scaled.to_dtype(features.dtype())
    }

    /// `l - 1`, in the shape of the checkpoint's tensor, which broadcasts over a weight `(rows, cols)`.
    fn change(&self, mode: Mode) -> CandleResult<Tensor> {
        self.l.read(mode) - 1.0
    }
}

impl AdapterLayer for Ia3Layer {
    fn input(&self, input: &Tensor, mode: Mode) -> CandleResult<Tensor> {
        if self.feedforward { self.scale(input, mode) } else { Ok(input.clone()) }
    }

    fn forward(&self, _host: HostView<'_>, _input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
        if self.feedforward { Ok(output) } else { self.scale(&output, mode) }
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        let change = self.change(Mode::Infer)?;
        Ok(base.to_dtype(change.dtype())?.broadcast_mul(&change)?)
    }

    fn delta_bias(&self, bias: Option<&Tensor>, mode: Mode) -> Result<Option<Tensor>> {
        let Some(bias) = bias.filter(|_| !self.feedforward) else { return Ok(None) };
        let change = self.change(mode)?.flatten_all()?;
        Ok(Some((bias.to_dtype(change.dtype())? * change)?))
    }
}
