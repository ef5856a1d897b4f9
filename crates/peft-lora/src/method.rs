//! LoRA as an adapter method: from a config and sites to layers.

use crate::config::{LoraBias, LoraConfig};
use crate::dora::Magnitude;
use crate::init::Pair;
use crate::layer::{Factors, LoraLayer, Names};
use crate::pattern::Patterns;
use crate::unsupported;
use candle_core::{DType, Device, Tensor};
use peft_core::{
    AdapterLayer, AdapterMeta, AdapterMethod, BiasMode, Dropout, Error, HostKind, HostSpec, Param, ParamBuilder,
    ParamKey, Result, Site, SiteShapes, TargetSpec, adapter_dtype, value_dtype,
};
use std::sync::Arc;

/// The trained bias of B.
const BIAS: &str = "lora_B.bias";

/// All that one module can have.
const TENSORS: [&str; 7] =
    [Names::LINEAR.a, Names::LINEAR.b, BIAS, Names::EMBEDDING.a, Names::EMBEDDING.b, MAGNITUDE[0], MAGNITUDE[1]];

/// The trained lengths of DoRA, and what other versions of PEFT call them in a model and in some files.
const MAGNITUDE: [&str; 2] = ["lora_magnitude_vector", "lora_magnitude_vector.weight"];

impl AdapterMethod for LoraConfig {
    const PEFT_TYPE: &'static str = "LORA";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn check_origin(&self, meta: &AdapterMeta) -> Result<()> {
        unsupported::check_removed(&meta.unknown)
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &TENSORS
    }

    fn bias(&self) -> BiasMode {
        match self.bias {
            LoraBias::None => BiasMode::None,
            LoraBias::All => BiasMode::All,
            LoraBias::LoraOnly => BiasMode::Targets,
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        matches!(host.kind, HostKind::Linear | HostKind::Embedding)
    }

    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = Site::fan_in_fan_out(sites).unwrap_or(self.fan_in_fan_out);
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let (ranks, alphas) = (Patterns::new(&self.rank_pattern)?, Patterns::new(&self.alpha_pattern)?);
        if !params.is_loading() {
            ranks.check_used("rank_pattern", sites)?;
            alphas.check_used("alpha_pattern", sites)?;
        }
        let sizes: Vec<SiteSize> = sites
            .iter()
            .map(|site| {
                let r = ranks.find(&site.path).unwrap_or(self.r);
                let alpha = alphas.find(&site.path).unwrap_or(self.lora_alpha);
                let scale = if self.use_rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 };
                SiteSize { r, scale }
            })
            .collect();
        let mut initial = self.initial(sites, &sizes, params)?.into_iter();
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for (index, (site, size)) in sites.iter().zip(sizes).enumerate() {
            let layer = self.layer(site, index, size, initial.next().flatten(), params);
            layers.push(Arc::new(layer.map_err(|e| e.at(&site.path))?));
        }
        Ok(layers)
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        for names in [Names::LINEAR, Names::EMBEDDING] {
            if let (Some(a), Some(b)) = (tensors.get(names.a), tensors.get(names.b)) {
                let ((_, inner), (outer, _)) = (a.dims2().ok()?, b.dims2().ok()?);
                return Some(if names == Names::LINEAR { (outer, inner) } else { (inner, outer) });
            }
        }
        None
    }
}

/// The rank and the scaling of one site.
#[derive(Clone, Copy)]
struct SiteSize {
    r: usize,
    scale: f64,
}

impl LoraConfig {
    /// The factors that sites begin with when those are parts of their weights, decomposed side by side; they are not in the file.
    ///
    /// The embeddings of a file that PEFT wrote have none: PEFT begins them as if `init_lora_weights` were true.
    fn initial(&self, sites: &[Site], sizes: &[SiteSize], params: &ParamBuilder<'_>) -> Result<Vec<Option<Pair>>> {
        let loading = params.is_loading();
        if self.init_lora_weights.is_for_files() && !loading {
            let name = self.init_lora_weights.name();
            return Err(Error::config(format!(
                "`init_lora_weights` is \"{name}\", with which adapters are read but not made; make one in PEFT, or use true"
            )));
        }
        if !self.init_lora_weights.decomposes() {
            return Ok(vec![]);
        }
        params.decomposer().each(sites, |index, decomposition| {
            if loading && decomposition.site().spec.kind == HostKind::Embedding {
                return Ok(None);
            }
            let SiteSize { r, scale } = sizes[index];
            self.init_lora_weights.decompose(decomposition, r, scale).map(Some)
        })
    }

    fn layer(
        &self,
        site: &Site,
        index: usize,
        SiteSize { r, scale }: SiteSize,
        initial: Option<Pair>,
        params: &mut ParamBuilder<'_>,
    ) -> Result<LoraLayer> {
        let HostSpec { kind, rows, cols, ref device, dtype, embed_scale, .. } = site.spec;
        let (names, shape_a, shape_b) = match kind {
            HostKind::Embedding => (Names::EMBEDDING, (r, rows), (cols, r)),
            _ => (Names::LINEAR, (r, cols), (rows, r)),
        };
        if self.lora_bias && kind == HostKind::Embedding {
            return Err(Error::config("`lora_bias` is for linear layers, not for an embedding"));
        }
        let length = self.lora_bias.then_some(rows);
        let drawn =
            (!params.is_loading()).then(|| self.init_lora_weights.draw(params.rng(), kind, shape_a, shape_b, length));
        let (mut a, mut b, mut bias) = match drawn {
            Some(drawn) => (drawn.a, drawn.b, drawn.bias),
            None => Default::default(),
        };
        if let (Some(pair), false) = (&initial, params.is_loading()) {
            (a, b) = (pair.a.flatten_all()?.to_vec1()?, pair.b.flatten_all()?.to_vec1()?);
        }
        // Drawn values are rounded like a 16-bit base, as PEFT's are; parts of the weight must stay what is taken out of it.
        let values_of = if initial.is_some() { DType::F32 } else { value_dtype(dtype) };
        let dtype = adapter_dtype(dtype);
        let mut trained = |name: &str, shape: &[usize], values: &mut Vec<f32>| -> Result<Param> {
            let values = std::mem::take(values);
            let key = ParamKey::site(&site.path, name);
            params.trainable(key, shape, dtype, device, || {
                Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(values_of)?)
            })
        };
        let a = trained(names.a, &[shape_a.0, shape_a.1], &mut a)?;
        let b = trained(names.b, &[shape_b.0, shape_b.1], &mut b)?;
        let bias = length.map(|n| trained(BIAS, &[n], &mut bias)).transpose()?;
        let initial = initial.map(|pair| pair.to(dtype, device)).transpose()?;
        let factors = Factors { kind, a, b, bias, initial, scale };
        let magnitude = if self.use_dora { Some(self.magnitude(site, &factors, params)?) } else { None };
        let dropout = Dropout::new(self.lora_dropout as f32, index as u64);
        Ok(LoraLayer::new(factors, magnitude, embed_scale, dropout))
    }

    /// DoRA's lengths: those of the weight as the fresh factors leave it, so that a fresh adapter changes nothing.
    fn magnitude(&self, site: &Site, factors: &Factors, params: &mut ParamBuilder<'_>) -> Result<Magnitude> {
        let HostSpec { kind, rows, cols, ref device, dtype, .. } = site.spec;
        let length = if kind == HostKind::Embedding { cols } else { rows };
        let key = ParamKey::site(&site.path, MAGNITUDE[0]);
        let start = || Ok(Magnitude::lengths(kind, &site.base.canonical()?, &factors.product()?)?);
        let lengths = params.trainable(key, length, adapter_dtype(dtype), device, start)?;
        Magnitude::new(kind, lengths, &site.base)
    }
}
