//! LoRA at one site.

use candle_core::{DType, Tensor};
use peft_core::{AdapterLayer, Dropout, HostKind, HostView, LoraFactors, Mode, Param, Result, WeightLayout};

/// What a checkpoint calls the factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) a: &'static str,
    pub(crate) b: &'static str,
}

impl Names {
    pub(crate) const LINEAR: Self = Self { a: "lora_A.weight", b: "lora_B.weight" };
    pub(crate) const EMBEDDING: Self = Self { a: "lora_embedding_A", b: "lora_embedding_B" };
}

/// `y + scale * B A x`; for an embedding A is `(r, entries)` and B `(dim, r)`.
#[derive(Debug)]
pub(crate) struct LoraLayer {
    kind: HostKind,
    a: Param,
    b: Param,
    scale: f64,
    embed_scale: f64,
    dropout: Dropout,
}

impl LoraLayer {
    pub(crate) fn new(kind: HostKind, a: Param, b: Param, scale: f64, embed_scale: f64, dropout: Dropout) -> Self {
        Self { kind, a, b, scale, embed_scale, dropout }
    }
}

impl AdapterLayer for LoraLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let (a, b) = (self.a.read(mode), self.b.read(mode));
        let (low, scale) = match self.kind {
            HostKind::Embedding => {
                let picked = a.index_select(&input.flatten_all()?, 1)?.t()?.contiguous()?;
                let shape: Vec<usize> = input.dims().iter().copied().chain([picked.dim(1)?]).collect();
                (picked.reshape(shape)?, self.scale * self.embed_scale)
            }
            _ => {
                let xs = self.dropout.forward(&input.to_dtype(a.dtype())?, mode)?;
                (peft_nn::linear(&xs, a, WeightLayout::OutIn, None)?, self.scale)
            }
        };
        let change = (peft_nn::linear(&low, b, WeightLayout::OutIn, None)? * scale)?;
        let dtype = output.dtype();
        (output.to_dtype(change.dtype())? + change)?.to_dtype(dtype)
    }

    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        let LoraFactors { a, b, scale } = self.factors()?;
        Ok((b.contiguous()?.matmul(&a.contiguous()?)? * scale)?)
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        self.factors().map(Some)
    }

    fn reseed(&self, seed: u64) {
        self.dropout.reseed(seed);
    }
}

impl LoraLayer {
    fn factors(&self) -> Result<LoraFactors> {
        let (a, b) = (self.a.read(Mode::Infer), self.b.read(Mode::Infer));
        debug_assert!(matches!(a.dtype(), DType::F32 | DType::F64));
        let (a, b) = match self.kind {
            HostKind::Embedding => (b.t()?, a.t()?),
            _ => (a.clone(), b.clone()),
        };
        Ok(LoraFactors { a, b, scale: self.scale })
    }
}
