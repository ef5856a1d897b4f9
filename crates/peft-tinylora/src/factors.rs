//! The frozen factors of a weight: its leading singular directions.

use crate::precision;
use candle_core::{Device, Tensor};
use peft_core::{HostSpec, Result, Site, linalg::truncated_svd};
use rayon::prelude::*;

/// The right factor `(r, cols)` and the left one `(rows, r)`, whose product is the rank-`r` approximation of the weight.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
}

/// The rank that a weight allows: a config may ask for more than the weight has.
pub(crate) fn rank(r: usize, spec: &HostSpec) -> usize {
    r.min(spec.rows).min(spec.cols)
}

/// The factors of every site, decomposed side by side; a worker holds one weight in f32 at a time.
pub(crate) fn of_sites(sites: &[Site], r: usize) -> Result<Vec<Factors>> {
    sites.par_iter().map(|site| Factors::of(site, r).map_err(|e| e.at(&site.path))).collect()
}

impl Factors {
    /// The square root of the singular values goes to both sides. Both factors are made on the CPU, in the dtype of the base,
    /// operation by operation, because that decides how a 16-bit base rounds.
    fn of(site: &Site, r: usize) -> Result<Self> {
        let weight = site.base.canonical()?.to_device(&Device::Cpu)?;
        let svd = truncated_svd(&weight, r)?;
        let dtype = precision::rounding(site.spec.dtype);
        let root = svd.s.to_dtype(dtype)?.sqrt()?;
        let a = svd.vt.to_dtype(dtype)?.broadcast_mul(&root.unsqueeze(1)?)?;
        let b = svd.u.to_dtype(dtype)?.broadcast_mul(&root)?;
        let storage = precision::storage(site.spec.dtype);
        Ok(Self { a: a.to_dtype(storage)?, b: b.to_dtype(storage)? })
    }
}
