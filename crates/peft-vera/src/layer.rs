//! VeRA at one site.

use candle_core::Tensor;
use peft_core::{AdapterLayer, Dropout, HostView, LoraFactors, Mode, Param, Result, WeightLayout};
use peft_nn::linear;

/// `y + lambda_b * (B (lambda_d * (A x)))`.
#[derive(Debug)]
pub(crate) struct VeraLayer {
    /// `(r, cols)`
    a: Tensor,
    /// `(rows, r)`
    b: Tensor,
    /// `(rows)`
    lambda_b: Param,
    /// `(r)`
    lambda_d: Param,
    dropout: Dropout,
}

impl VeraLayer {
    /// A layer from its parts of the shared `a` `(r, cols)` and `b` `(rows, r)`, and its vectors `lambda_b` `(rows)` and
    /// `lambda_d` `(r)`.
    pub(crate) fn new((a, b): (Tensor, Tensor), lambda_b: Param, lambda_d: Param, dropout: Dropout) -> Self {
        Self { a, b, lambda_b, lambda_d, dropout }
    }

    /// `diag(lambda_b) B` and `diag(lambda_d) A`.
    fn factors(&self) -> Result<LoraFactors> {
        let scaled = |matrix: &Tensor, rows: &Param| matrix.broadcast_mul(&rows.read(Mode::Infer).unsqueeze(1)?);
        Ok(LoraFactors { a: scaled(&self.a, &self.lambda_d)?, b: scaled(&self.b, &self.lambda_b)?, scale: 1.0 })
    }
}

impl AdapterLayer for VeraLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let xs = self.dropout.forward(&input.to_dtype(self.a.dtype())?, mode)?;
        let low = linear(&xs, &self.a, WeightLayout::OutIn, None)?.broadcast_mul(self.lambda_d.read(mode))?;
        let change = linear(&low, &self.b, WeightLayout::OutIn, None)?.broadcast_mul(self.lambda_b.read(mode))?;
        let dtype = output.dtype();
        (output.to_dtype(change.dtype())? + change)?.to_dtype(dtype)
    }

    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        let LoraFactors { a, b, .. } = self.factors()?;
        Ok(b.matmul(&a)?)
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        self.factors().map(Some)
    }

    fn reseed(&self, seed: u64) {
        self.dropout.reseed(seed);
    }
}
