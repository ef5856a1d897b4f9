//! LoRA at one site.

use crate::dora::Magnitude;
use crate::init::Pair;
use candle_core::{DType, Device, Tensor};
use peft_core::{AdapterLayer, Dropout, HostKind, HostView, LoraFactors, LowRank, Mode, Param, Result, WeightLayout};
use peft_nn::linear;

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

impl Pair {
    pub(crate) fn to(&self, dtype: DType, device: &Device) -> Result<Self> {
        let to = |t: &Tensor| t.to_dtype(dtype)?.to_device(device);
        Ok(Self { a: to(&self.a)?, b: to(&self.b)? })
    }
}

/// `scale * (B A - B_0 A_0)`; for an embedding A is `(r, entries)` and B `(dim, r)`.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) kind: HostKind,
    pub(crate) a: Param,
    pub(crate) b: Param,
    /// What `lora_bias` adds to `B A x`.
    pub(crate) bias: Option<Param>,
    /// `A_0` and `B_0`, the part of the weight that the factors began as. PEFT subtracts it from the weight; subtracting it here
    /// leaves the weight alone, so that the adapter can be switched off and merged like any other.
    pub(crate) initial: Option<Pair>,
    pub(crate) scale: f64,
}

impl Factors {
    /// What they add to a linear layer's output for these inputs.
    fn of_input(&self, xs: &Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let through = |a: &Tensor, b: &Tensor, bias: Option<&Tensor>| {
            linear(&linear(xs, a, WeightLayout::OutIn, None)?, b, WeightLayout::OutIn, bias)
        };
        let bias = self.bias.as_ref().map(|bias| bias.read(mode));
        let change = through(self.a.read(mode), self.b.read(mode), bias)?;
        match &self.initial {
            Some(Pair { a, b }) => (change - through(a, b, None)?)? * self.scale,
            None => change * self.scale,
        }
    }

    /// What they add to an embedding's rows for these ids.
    fn of_ids(&self, ids: &Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let picked = self.a.read(mode).index_select(&ids.flatten_all()?, 1)?.t()?.contiguous()?;
        let shape: Vec<usize> = ids.dims().iter().copied().chain([picked.dim(1)?]).collect();
        linear(&picked.reshape(shape)?, self.b.read(mode), WeightLayout::OutIn, None)? * self.scale
    }

    /// The same as one product, in the orientation of the weight: `B_0 A_0` doubles the rank.
    pub(crate) fn product(&self) -> Result<LoraFactors> {
        let (a, b) = (self.a.read(Mode::Infer), self.b.read(Mode::Infer));
        let (a, b) = match (&self.initial, self.kind) {
            (Some(initial), _) => (Tensor::cat(&[a, &initial.a], 0)?, Tensor::cat(&[b, &initial.b.neg()?], 1)?),
            (None, HostKind::Embedding) => (b.t()?, a.t()?),
            (None, _) => (a.clone(), b.clone()),
        };
        Ok(LoraFactors { a, b, scale: self.scale })
    }
}

/// LoRA's change of a host, normalised by DoRA's magnitude if there is one.
#[derive(Debug)]
pub(crate) struct LoraLayer {
    factors: Factors,
    magnitude: Option<Magnitude>,
    embed_scale: f64,
    dropout: Dropout,
}

impl LoraLayer {
    pub(crate) fn new(factors: Factors, magnitude: Option<Magnitude>, embed_scale: f64, dropout: Dropout) -> Self {
        Self { factors, magnitude, embed_scale, dropout }
    }
}

impl AdapterLayer for LoraLayer {
    fn forward(&self, host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let dtype = output.dtype();
        if self.factors.kind == HostKind::Embedding {
            let change = (self.factors.of_ids(input, mode)? * self.embed_scale)?;
            let changed = (output.to_dtype(change.dtype())? + change)?;
            let adapted = match &self.magnitude {
                Some(magnitude) => changed.broadcast_mul(&magnitude.gain(host, &self.factors.product()?, mode)?)?,
                None => changed,
            };
            return adapted.to_dtype(dtype);
        }
        let xs = input.to_dtype(self.factors.a.read(mode).dtype())?;
        let dropped = self.dropout.forward(&xs, mode)?;
        let change = self.factors.of_input(&dropped, mode)?;
        let output = output.to_dtype(change.dtype())?;
        let adapted = match &self.magnitude {
            None => (output + change)?,
            Some(magnitude) => {
                let gain = magnitude.gain(host, &self.factors.product()?, mode)?;
                let masked = self.dropout.drops(mode).then_some(&dropped);
                magnitude.adapt(host, masked, output, &change, &gain, mode)?
            }
        };
        adapted.to_dtype(dtype)
    }

    fn low_rank(&self, mode: Mode) -> candle_core::Result<Option<LowRank>> {
        let Factors { kind, a, b, bias, initial, scale } = &self.factors;
        let more = bias.is_some() || initial.is_some() || self.magnitude.is_some() || self.dropout.drops(mode);
        if *kind == HostKind::Embedding || more {
            return Ok(None);
        }
        Ok(Some(LowRank::new(a.read(mode).clone(), b.read(mode).clone()).with_scale(*scale)))
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        let LoraFactors { a, b, scale } = self.factors.product()?;
        let delta = (b.contiguous()?.matmul(&a.contiguous()?)? * scale)?;
        match &self.magnitude {
            Some(magnitude) => magnitude.normalised(base, &delta),
            None => Ok(delta),
        }
    }

    fn delta_bias(&self, _bias: Option<&Tensor>, mode: Mode) -> Result<Option<Tensor>> {
        let bias = self.factors.bias.as_ref().map(|bias| bias.read(mode));
        Ok(bias.map(|bias| bias * self.factors.scale).transpose()?)
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        if self.magnitude.is_some() || self.factors.bias.is_some() {
            return Ok(None);
        }
        self.factors.product().map(Some)
    }

    fn reseed(&self, seed: u64) {
        self.dropout.reseed(seed);
    }
}
