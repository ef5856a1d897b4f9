//! TinyLoRA as an adapter method: from a config and sites to layers.

use crate::config::{TinyLoraBias, TinyLoraConfig, TinyLoraInit};
use crate::layer::TinyLoraLayer;
use crate::projection::Projection;
use crate::{Groups, precision};
use candle_core::{DType, Device, Tensor};
use peft_core::{
    AdapterLayer, AdapterMeta, AdapterMethod, BiasMode, Dropout, Error, HostKind, HostSpec, Param, ParamBuilder,
    ParamKey, Persist, Result, SingularValues, Site, SiteShapes, SvdFactors, TargetSpec, WeightLayout, adapter_dtype,
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
        if let Some(last) = sites.iter().rev().find(|s| s.spec.kind == HostKind::Linear) {
            self.fan_in_fan_out = last.spec.layout == WeightLayout::InOut;
        }
    }

    /// Vectors are tied, and projections seeded, by position.
    fn order_matters(&self) -> bool {
        !(self.weight_tying == 1.0 && self.save_projection)
    }

    /// # Errors
    /// A checkpoint must hold A and B of every site, v of every group and, with `save_projection`, P of every site. A and B
    /// cannot be made again: the signs of singular vectors are free, and the trained vectors belong to one choice of them.
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let groups = self.groups(sites.len());
        for site in sites {
            Projection::check_size(self.u, SvdFactors::rank(self.r, &site.spec)).map_err(|e| e.at(&site.path))?;
        }
        let mut fresh = if params.is_loading() {
            self.check_complete(sites, groups, params)?;
            vec![]
        } else {
            SvdFactors::of_sites(sites, self.r, SingularValues::Split)?
        }
        .into_iter();
        let vectors = self.vectors(sites, groups, params)?;
        let mut layers: Vec<Arc<dyn AdapterLayer>> = Vec::with_capacity(sites.len());
        for (index, site) in sites.iter().enumerate() {
            let (a, b) = self.factors(site, fresh.next(), params)?;
            let p = self.projection(index, site, (&a, &b), params)?;
            let dropout = Dropout::new(self.tinylora_dropout as f32, index as u64);
            let host = (site.spec.kind, site.spec.embed_scale);
            layers.push(Arc::new(TinyLoraLayer::new(host, (a, b), &p, vectors[groups.of(index)].clone(), dropout)?));
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
        for site in sites {
            let missing = |name| Some(ParamKey::site(&site.path, name)).filter(|key| !params.has(key));
            if let Some(key) = missing(A).or_else(|| missing(B)) {
                return Err(Error::MissingTensor(key.to_string()));
            }
            if let Some(key) = missing(P).filter(|_| self.save_projection) {
                return Err(Error::MissingTensor(key.to_string()).at(
                    "`save_projection` is true (set it to false to draw projections again from `projection_seed`)",
                ));
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

    fn factors(
        &self,
        site: &Site,
        fresh: Option<SvdFactors>,
        params: &mut ParamBuilder<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let HostSpec { rows, cols, dtype, ref device, .. } = site.spec;
        let (r, dtype) = (SvdFactors::rank(self.r, &site.spec), adapter_dtype(dtype));
        let (fresh_a, fresh_b) = fresh.map(|f| (f.a, f.b)).unzip();
        let mut frozen = |name, shape: (usize, usize), fresh: Option<Tensor>| {
            let key = ParamKey::site(&site.path, name);
            let missing = || Error::MissingTensor(key.to_string());
            params.frozen(key.clone(), shape, dtype, device, Persist::Always, || fresh.ok_or_else(missing))
        };
        Ok((frozen(A, (r, cols), fresh_a)?, frozen(B, (rows, r), fresh_b)?))
    }

    /// The projection: the checkpoint's if it holds one, otherwise drawn.
    fn projection(
        &self,
        index: usize,
        site: &Site,
        (a, b): (&Tensor, &Tensor),
        params: &mut ParamBuilder<'_>,
    ) -> Result<Tensor> {
        let r = a.dim(0)?;
        let key = ParamKey::site(&site.path, P);
        let stored = params.has(&key);
        let persist = if self.save_projection { Persist::Always } else { Persist::Never };
        let recipe = Projection {
            seed: self.projection_seed.wrapping_add(index as i64),
            u: self.u,
            r,
            dtype: if stored && self.save_projection { a.dtype() } else { precision::of_projection(site, a, b)? },
        };
        let p = params.frozen(key.clone(), (self.u, r, r), a.dtype(), a.device(), persist, || recipe.draw())?;
        if stored && !self.save_projection && !recipe.is(&p)? {
            return Err(Error::config(format!(
                "`{key}` is in the checkpoint and is not what `projection_seed` {} makes, but `save_projection` is false: set it to \
                 true to use the checkpoint's projections",
                self.projection_seed,
            )));
        }
        Ok(p)
    }
}
