//! A small honest method, and the ways in which it can be broken.

use candle_core::{DType, Module, Result as CandleResult, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, HostKind, HostSpec, HostView, LoraFactors, Mode, ModuleNames, Param, ParamBuilder,
    ParamKey, Persist, Result, Site, TargetSpec,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is wrong with a [`Planted`] method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Bug {
    /// Nothing.
    None,
    /// The delta is half of what `forward` adds.
    HalfDelta,
    /// The LoRA factors forget the scale.
    UnscaledFactors,
    /// Outputs leave in the dtype of the adapter.
    OtherDtype,
    /// Initial values come from a generator that nobody seeded.
    UnseededInit,
    /// The trained factor starts with ones.
    NotIdentity,
    /// Building writes into the base weight.
    ScribblesOnBase,
    /// Each delta is a little larger than the one before.
    DriftingDelta,
    /// A random frozen tensor is left out of the checkpoint.
    UnsavedTensor,
    /// A missing trained factor is taken for zeros.
    ForgivesMissing,
    /// Not-a-number is taken for zero when merging.
    HidesNan,
    /// One parameter plays no part.
    DeadTrainable,
    /// A part of the trained factor is read without its graph.
    DetachedPart,
    /// Inference is tracked.
    TrackedInference,
    /// Inference uses the values from the start.
    StaleInference,
}

/// `y + scale * B A x` with a frozen random A and a trained B.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planted {
    pub(crate) bug: Bug,
    #[serde(flatten)]
    pub(crate) targets: TargetSpec,
}

pub(crate) fn planted(bug: Bug) -> Planted {
    Planted { bug, targets: TargetSpec::new(ModuleNames::list(["embed_tokens", "up_proj", "down_proj"])) }
}

const RANK: usize = 2;
const SCALE: f64 = 1.5;

/// Stands for a generator that nobody seeded.
static ENTROPY: AtomicU64 = AtomicU64::new(1);

impl AdapterMethod for Planted {
    const PEFT_TYPE: &'static str = "PLANTED";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, host: &HostSpec) -> bool {
        matches!(host.kind, HostKind::Linear | HostKind::Embedding)
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        sites.iter().map(|site| Ok(Arc::new(self.layer(site, params)?) as Arc<dyn AdapterLayer>)).collect()
    }
}

impl Planted {
    fn layer(&self, site: &Site, params: &mut ParamBuilder<'_>) -> Result<PlantedLayer> {
        let HostSpec { kind, rows, cols, dtype, device, embed_scale, .. } = &site.spec;
        let wide = if *dtype == DType::F64 { DType::F64 } else { DType::F32 };
        if self.bug == Bug::ScribblesOnBase {
            let weight = site.base.stored()?;
            weight.slice_set(&weight.narrow(0, 0, 1)?.affine(2.0, 0.0)?, 0, 0)?;
        }
        let drawn = match self.bug {
            Bug::UnseededInit => vec![ENTROPY.fetch_add(1, Ordering::Relaxed) as f32; RANK * cols],
            _ => params.rng().uniform(-1.0, 1.0, RANK * cols),
        };
        let persist = if self.bug == Bug::UnsavedTensor { Persist::Never } else { Persist::Always };
        let key = ParamKey::site(&site.path, "planted_A");
        let a = params.frozen(key, (RANK, *cols), wide, device, persist, || {
            Ok(Tensor::from_vec(drawn, (RANK, *cols), device)?)
        })?;
        let key = ParamKey::site(&site.path, "planted_B");
        let start = match self.bug {
            Bug::NotIdentity => Tensor::ones((*rows, RANK), wide, device)?,
            _ => Tensor::zeros((*rows, RANK), wide, device)?,
        };
        let b = if self.bug == Bug::ForgivesMissing && params.is_loading() && !params.has(&key) {
            // A parameter of a builder that reads nothing, so that the absence is never noticed.
            ParamBuilder::new(None).trainable(key, (*rows, RANK), wide, device, || Ok(start.clone()))?
        } else {
            params.trainable(key, (*rows, RANK), wide, device, || Ok(start.clone()))?
        };
        if self.bug == Bug::DeadTrainable {
            let key = ParamKey::site(&site.path, "planted_dead");
            params.trainable(key, 1, wide, device, || Ok(Tensor::zeros(1, wide, device)?))?;
        }
        let start = b.read(Mode::Infer).copy()?;
        Ok(PlantedLayer {
            bug: self.bug,
            kind: *kind,
            embed_scale: *embed_scale,
            a,
            b,
            start,
            deltas: AtomicU64::new(0),
        })
    }
}

#[derive(Debug)]
struct PlantedLayer {
    bug: Bug,
    kind: HostKind,
    embed_scale: f64,
    a: Tensor,
    b: Param,
    start: Tensor,
    deltas: AtomicU64,
}

impl PlantedLayer {
    fn b(&self, mode: Mode) -> CandleResult<Tensor> {
        match (self.bug, mode) {
            (Bug::TrackedInference, _) => Ok(self.b.read(Mode::Train).clone()),
            (Bug::StaleInference, Mode::Infer) => Ok(self.start.clone()),
            (Bug::DetachedPart, Mode::Train) => (self.b.read(Mode::Train) * 0.5)? + (self.b.read(Mode::Infer) * 0.5)?,
            _ => Ok(self.b.read(mode).clone()),
        }
    }
}

impl AdapterLayer for PlantedLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
        let b = self.b(mode)?;
        let change = if self.kind == HostKind::Embedding {
            let rows = candle_nn::Embedding::new(b, RANK).forward(input)?;
            (rows.broadcast_matmul(&self.a)? * self.embed_scale)?
        } else {
            let xs = input.to_dtype(self.a.dtype())?;
            xs.broadcast_matmul(&self.a.t()?)?.broadcast_matmul(&b.t()?)?
        };
        let sum = (output.to_dtype(change.dtype())? + (change * SCALE)?)?;
        if self.bug == Bug::OtherDtype { Ok(sum) } else { sum.to_dtype(output.dtype()) }
    }

    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        let delta = (self.b(Mode::Infer)?.matmul(&self.a)? * SCALE)?;
        Ok(match self.bug {
            Bug::HalfDelta => (delta * 0.5)?,
            Bug::DriftingDelta => (delta * (1.0 + 1e-5 * self.deltas.fetch_add(1, Ordering::Relaxed) as f64))?,
            Bug::HidesNan => delta.eq(&delta)?.where_cond(&delta, &delta.zeros_like()?)?,
            Bug::TrackedInference => delta.detach(),
            _ => delta,
        })
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        let scale = if self.bug == Bug::UnscaledFactors { 1.0 } else { SCALE };
        Ok(Some(LoraFactors { a: self.a.clone(), b: self.b(Mode::Infer)?.detach(), scale }))
    }
}
