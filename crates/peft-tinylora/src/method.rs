//! TinyLoRA as an adapter method: from a config and sites to layers.

use crate::config::{TinyLoraBias, TinyLoraConfig, TinyLoraInit};
use crate::layer::TinyLoraLayer;
use crate::{Groups, precision, projection};
use candle_core::{DType, Device, Tensor};
use peft_core::{
    AdapterLayer, AdapterMeta, AdapterMethod, BiasMode, Dropout, Error, FrozenFactors, HostKind, HostSpec, Param,
    ParamBuilder, ParamKey, Projection, Result, SingularValues, Site, SiteShapes, SvdFactors, TargetSpec,
};
use std::sync::Arc;

/// The tensors of one module, below its path.
const A: &str = "tinylora_A";
const B: &str = "tinylora_B";
const P: &str = "tinylora_P";

/// The key of a group's trained vector.
fn v_key(group: usize) -> ParamKey {
    ParamKey::shared(format!("tinylora_v.{group}"))
}

impl AdapterMethod for TinyLoraConfig {
    const PEFT_TYPE: &'static str = "TINYLORA";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    /// Version 0.19 of PEFT seeded projections by a hash that is random per process: what it left out cannot be drawn again.
    fn check_origin(&self, meta: &AdapterMeta) -> Result<()> {
        match meta.peft_version.as_deref() {
            Some(version) if !self.save_projection && version.starts_with("0.19.") => Err(Error::config(format!(
                "PEFT {version} wrote this adapter with `save_projection` false, and its projections cannot be drawn again; save it \
                 with `save_projection` true",
            ))),
            _ => Ok(()),
        }
    }

    fn bias(&self) -> BiasMode {
        match self.bias {
            TinyLoraBias::None => BiasMode::None,
            TinyLoraBias::All => BiasMode::All,
            TinyLoraBias::TinyLoraOnly => BiasMode::Targets,
        }
    }

    fn supports(&self, host: &HostSpec) -> bool {
        matches!(host.kind, HostKind::Linear | HostKind::Embedding)
    }

    /// PEFT writes the orientation of the last linear layer.
    fn settle(&mut self, sites: &[Site]) {
        self.fan_in_fan_out = Site::fan_in_fan_out(sites).unwrap_or(self.fan_in_fan_out);
    }

    /// Vectors are tied, and projections seeded, by position.
    fn order_matters(&self) -> bool {
        !(self.weight_tying == 1.0 && self.save_projection)
    }

    /// # Errors
    /// A checkpoint must hold A and B of every site, v of every group and, with `save_projection`, P of every site. A and B
    /// are not made again: the signs of singular vectors are free, and the trained vectors belong to one choice of them. A compact
    /// checkpoint belongs to the choice of this crate, and holds v alone.
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let groups = self.groups(sites.len());
        for site in sites {
            projection::check_size(self.u, SvdFactors::rank(self.r, &site.spec)).map_err(|e| e.at(&site.path))?;
        }
        if params.is_loading() {
            self.check_complete(sites, groups, params)?;
        }
        let factors = SvdFactors::frozen(sites, self.r, SingularValues::Split, (A, B), params)?;
        let vectors = self.vectors(sites, groups, params)?;
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for ((index, site), factors) in sites.iter().enumerate().zip(factors) {
            let p = self.projection(index, site, &factors, params)?;
            let dropout = Dropout::new(self.tinylora_dropout as f32, index as u64);
            let factors = FrozenFactors::new(site, factors, dropout);
            layers.push(Arc::new(TinyLoraLayer::new(factors, p, vectors[groups.of(index)].clone())));
        }
        Ok(layers)
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        let (_, cols) = tensors.get(A)?.dims2().ok()?;
        let (rows, _) = tensors.get(B)?.dims2().ok()?;
        Some((rows, cols))
    }
}

impl TinyLoraConfig {
    /// Refuses a checkpoint that lacks something, before anything is computed, and says why it was expected.
    fn check_complete(&self, sites: &[Site], groups: Groups, params: &ParamBuilder<'_>) -> Result<()> {
        let found = (0..).take_while(|group| params.has(&v_key(*group))).count();
        let expected = groups.count();
        if found != expected {
            let error = if found < expected {
                Error::MissingTensor(v_key(found).to_string())
            } else {
                Error::UnexpectedTensors((expected..found).map(|group| v_key(group).to_string()).collect())
            };
            return Err(error.at(format!(
                "`weight_tying` of {} over {} adapted modules makes {expected} groups `tinylora_v.*`, but the checkpoint has {found}",
                self.weight_tying,
                sites.len(),
            )));
        }
        for site in sites.iter().filter(|_| !params.makes_derived()) {
            let missing = |name| Some(ParamKey::site(&site.path, name)).filter(|key| !params.has(key));
            if let Some(key) = missing(A).or_else(|| missing(B)) {
                return Err(Error::MissingTensor(key.to_string()));
            }
        }
        Ok(())
    }

    /// The trained vectors, one per group, on the device of the group's first module.
    fn vectors(&self, sites: &[Site], groups: Groups, params: &mut ParamBuilder<'_>) -> Result<Vec<Param>> {
        let wide = sites.iter().any(|site| site.spec.dtype == DType::F64);
        let dtype = if wide { DType::F64 } else { DType::F32 };
        let draws = self.init_weights != TinyLoraInit::Zeros && !params.is_loading();
        let mut vectors = Vec::with_capacity(groups.count());
        for (index, site) in sites.iter().enumerate() {
            // Group numbers rise by one at a time.
            if groups.of(index) < vectors.len() {
                continue;
            }
            let device = &site.spec.device;
            let drawn = draws.then(|| params.rng().uniform(-self.init_v_bound, self.init_v_bound, self.u));
            let init = || match drawn {
                Some(values) => Ok(Tensor::from_vec(values, self.u, &Device::Cpu)?),
                None => Ok(Tensor::zeros(self.u, dtype, device)?),
            };
            vectors.push(params.trainable(v_key(vectors.len()), self.u, dtype, device, init)?);
        }
        Ok(vectors)
    }

    /// The projection `(u, r, r)` of the site at this position.
    fn projection(
        &self,
        index: usize,
        site: &Site,
        factors: &SvdFactors,
        params: &mut ParamBuilder<'_>,
    ) -> Result<Tensor> {
        let projection = Projection {
            seed_field: "projection_seed",
            seed: self.projection_seed.wrapping_add(index as i64),
            saved: self.save_projection,
            values: precision::of_projection(site, factors)?,
        };
        let (u, r) = (self.u, factors.a.dim(0)?);
        let key = ParamKey::site(&site.path, P);
        let draw = || projection::draw(projection.seed, u, r);
        projection.param(key, (u, r, r), &site.spec.device, params, draw)
    }
}
