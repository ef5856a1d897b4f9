//! Small methods that exist for these tests only, as outside crates would write them.

use candle_core::{DType, Result as CandleResult, Tensor};
use peft_core::{
    AdapterLayer, AdapterMethod, BiasMode, Error, HostKind, HostSpec, HostView, LoraFactors, Mode, Param, ParamBuilder,
    ParamKey, Persist, Registry, Result, Site, SiteShapes, TargetSpec, WeightLayout,
};
use peft_nn::{embedding, linear};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A registry with every method of this module.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<Bottleneck>().unwrap().register::<Scale>().unwrap().register::<Stubborn>().unwrap();
    registry
}

/// `delta = B A` with a frozen random A and a trained B that starts at zero. Modules have parameters of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Bottleneck {
    pub(crate) r: usize,
    pub(crate) bias: String,
    pub(crate) fan_in_fan_out: bool,
    #[serde(flatten)]
    pub(crate) targets: TargetSpec,
}

impl Default for Bottleneck {
    fn default() -> Self {
        Self { r: 2, bias: "none".into(), fan_in_fan_out: false, targets: TargetSpec::default() }
    }
}

impl Bottleneck {
    pub(crate) fn on(targets: TargetSpec) -> Self {
        Self { targets, ..Self::default() }
    }
}

impl AdapterMethod for Bottleneck {
    const PEFT_TYPE: &'static str = "BOTTLENECK";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn validate(&self) -> Result<()> {
        match self.bias.as_str() {
            "none" | "all" | "targets" => {}
            other => return Err(Error::config(format!("`bias` is `{other}`; it must be none, all or targets"))),
        }
        if self.r == 0 { Err(Error::config("`r` is 0; it must be positive")) } else { Ok(()) }
    }

    fn bias(&self) -> BiasMode {
        match self.bias.as_str() {
            "all" => BiasMode::All,
            "targets" => BiasMode::Targets,
            _ => BiasMode::None,
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        matches!(host.kind, HostKind::Linear | HostKind::Embedding)
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &["bottleneck_A", "bottleneck_B"]
    }

    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = sites.iter().any(|s| s.spec.layout == WeightLayout::InOut);
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let build = |site: &Site| {
            let HostSpec { kind, rows, cols, dtype, device, embed_scale, .. } = &site.spec;
            let wide = if *dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let drawn = params.rng().uniform(-1.0, 1.0, self.r * cols);
            let (key_a, key_b) =
                (ParamKey::site(&site.path, "bottleneck_A"), ParamKey::site(&site.path, "bottleneck_B"));
            let (shape_a, shape_b) = ((self.r, *cols), (*rows, self.r));
            let a = params.frozen(key_a, shape_a, wide, device, Persist::Always, || {
                Ok(Tensor::from_vec(drawn, shape_a, device)?)
            })?;
            let b = params.trainable(key_b, shape_b, wide, device, || Ok(Tensor::zeros(shape_b, wide, device)?))?;
            Ok(Arc::new(BottleneckLayer { kind: *kind, embed_scale: *embed_scale, a, b }) as Arc<dyn AdapterLayer>)
        };
        sites.iter().map(build).collect()
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        Some((tensors.get("bottleneck_B")?.dims()[0], tensors.get("bottleneck_A")?.dims()[1]))
    }
}

#[derive(Debug)]
struct BottleneckLayer {
    kind: HostKind,
    embed_scale: f64,
    a: Tensor,
    b: Param,
}

impl AdapterLayer for BottleneckLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
        let b = self.b.read(mode);
        let change = if self.kind == HostKind::Embedding {
            (linear(&embedding(input, b)?, &self.a, WeightLayout::InOut, None)? * self.embed_scale)?
        } else {
            let inner = linear(&input.to_dtype(self.a.dtype())?, &self.a, WeightLayout::OutIn, None)?;
            linear(&inner, b, WeightLayout::OutIn, None)?
        };
        (output.to_dtype(change.dtype())? + change)?.to_dtype(output.dtype())
    }

    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        Ok(self.b.read(Mode::Infer).matmul(&self.a)?)
    }

    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        Ok(Some(LoraFactors { a: self.a.clone(), b: self.b.read(Mode::Infer).clone(), scale: 1.0 }))
    }
}

/// Multiplies outputs, biases included, with one trained number that is shared by all modules and starts at one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scale {
    #[serde(flatten)]
    pub(crate) targets: TargetSpec,
}

impl Scale {
    pub(crate) fn on(targets: TargetSpec) -> Self {
        Self { targets }
    }
}

impl AdapterMethod for Scale {
    const PEFT_TYPE: &'static str = "SCALE";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let spec = &sites[0].spec;
        let wide = if spec.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let factor = params.trainable(ParamKey::shared("scale_factor"), 1, wide, &spec.device, || {
            Ok(Tensor::ones(1, wide, &spec.device)?)
        })?;
        Ok(sites.iter().map(|_| Arc::new(ScaleLayer { factor: factor.clone() }) as Arc<dyn AdapterLayer>).collect())
    }
}

#[derive(Debug)]
struct ScaleLayer {
    factor: Param,
}

impl AdapterLayer for ScaleLayer {
    fn forward(&self, _host: HostView<'_>, _input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
        let factor = self.factor.read(mode);
        output.to_dtype(factor.dtype())?.broadcast_mul(factor)?.to_dtype(output.dtype())
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        let factor = self.factor.read(Mode::Infer);
        Ok(base.to_dtype(factor.dtype())?.broadcast_mul(&(factor - 1.0)?)?)
    }

    fn delta_bias(&self, bias: Option<&Tensor>, mode: Mode) -> Result<Option<Tensor>> {
        let change = (self.factor.read(mode) - 1.0)?;
        Ok(bias.map(|b| b.to_dtype(change.dtype())?.broadcast_mul(&change)).transpose()?)
    }
}

/// Doubles outputs, has no parameters, and cannot be merged from its n-th module on. It claims to support every host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stubborn {
    pub(crate) mergeable: usize,
    /// How many layers it builds too few.
    #[serde(default)]
    pub(crate) lacking: usize,
    #[serde(flatten)]
    pub(crate) targets: TargetSpec,
}

impl AdapterMethod for Stubborn {
    const PEFT_TYPE: &'static str = "STUBBORN";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, _host: &HostSpec) -> bool {
        true
    }

    fn build(&self, sites: &[Site], _params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let built = sites.len().saturating_sub(self.lacking);
        Ok((0..built)
            .map(|i| Arc::new(StubbornLayer { mergeable: i < self.mergeable }) as Arc<dyn AdapterLayer>)
            .collect())
    }
}

#[derive(Debug)]
struct StubbornLayer {
    mergeable: bool,
}

impl AdapterLayer for StubbornLayer {
    fn forward(&self, _host: HostView<'_>, _input: &Tensor, output: Tensor, _mode: Mode) -> CandleResult<Tensor> {
        output * 2.0
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        if self.mergeable { Ok(base.clone()) } else { Err(Error::NotMergeable { method: Stubborn::PEFT_TYPE }) }
    }
}
