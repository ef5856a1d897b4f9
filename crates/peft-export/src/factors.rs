//! The deltas of an adapter as products of two factors, and what else it holds.

use crate::BaseModel;
use crate::architecture::Place;
use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::{DetachedAdapter, DetachedSite};
use peft_core::{Error, ParamKey, Result};

/// The delta of one module: `scale * b a`.
pub(crate) struct Factors {
    /// The module's path in transformers.
    pub(crate) path: String,
    pub(crate) place: Place,
    /// `(r, cols)`; an embedding's columns are its dimension.
    pub(crate) a: Tensor,
    /// `(rows, r)`; an embedding's rows are its entries.
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
}

/// Everything that an export is made from.
pub(crate) struct Source {
    pub(crate) factors: Vec<Factors>,
    /// Modules whose base weight came along in the adapter's file.
    pub(crate) assumed: Vec<String>,
}

impl Source {
    /// Takes an adapter apart.
    ///
    /// # Errors
    /// [`Error::NotExportable`] naming the first module that has no place in a file with two factors per module.
    pub(crate) fn of(adapter: &DetachedAdapter, base: &BaseModel, format: &'static str) -> Result<Self> {
        let assumed = assumed(adapter, format)?;
        let factors = adapter.sites.iter().map(|site| Factors::of(site, adapter, base, format));
        Ok(Self { factors: factors.collect::<Result<_>>()?, assumed })
    }
}

impl Factors {
    fn of(site: &DetachedSite, adapter: &DetachedAdapter, base: &BaseModel, format: &'static str) -> Result<Self> {
        let refuse = |reason| not_exportable(format, &site.path, reason);
        let BaseModel { architecture, layers, .. } = *base;
        let place = architecture.place(&site.path).ok_or_else(|| {
            let has = architecture.module_names();
            refuse(format!("a {architecture} model has no such module; it has {has}"))
        })?;
        if matches!(place, Place::Block { index, .. } if index >= layers) {
            return Err(refuse(format!("the base model has {layers} layers")));
        }
        let factors = site.layer.lora_factors().map_err(|e| e.at(&site.path))?.ok_or_else(|| {
            let method = adapter.config.method.peft_type();
            refuse(format!("the change that this {method} makes is not a product of two factors alone"))
        })?;
        let on_cpu = |tensor: &Tensor| tensor.to_device(&Device::Cpu);
        let (a, b) = (on_cpu(&factors.a)?, on_cpu(&factors.b)?);
        Ok(Self { path: site.path.clone(), place, a, b, scale: factors.scale })
    }

    /// The rank of the two factors.
    pub(crate) fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }

    /// The right factor in f32.
    pub(crate) fn a(&self) -> Result<Tensor> {
        Ok(self.a.to_dtype(DType::F32)?)
    }

    /// The left factor times `factor` in f32, rounded once.
    pub(crate) fn scaled_b(&self, factor: f64) -> Result<Tensor> {
        Ok((self.b.to_dtype(DType::F64)? * factor)?.to_dtype(DType::F32)?)
    }
}

/// The largest rank of all modules; at least 1.
pub(crate) fn largest_rank(factors: &[Factors]) -> usize {
    factors.iter().map(Factors::rank).max().unwrap_or(1).max(1)
}

/// The modules whose base weight is in the adapter's file, which a server has anyway; an error for anything more.
fn assumed(adapter: &DetachedAdapter, format: &'static str) -> Result<Vec<String>> {
    let mut assumed = vec![];
    for (key, _) in adapter.params.persisted().filter(|(key, _)| adapter.carried.contains_key(&key.to_string())) {
        let ParamKey::Site { path, name } = key else { continue };
        match name.as_str() {
            "base_layer.weight" => assumed.push(path.clone()),
            name => {
                let what = if name.ends_with("bias") { "its bias is trained" } else { "it was trained as a whole" };
                return Err(not_exportable(
                    format,
                    path,
                    format!("{what}; merge the adapter into its base model instead"),
                ));
            }
        }
    }
    Ok(assumed)
}

pub(crate) fn not_exportable(format: &'static str, path: &str, reason: impl Into<String>) -> Error {
    Error::NotExportable { format, path: path.to_owned(), reason: reason.into() }
}
