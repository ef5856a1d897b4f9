//! Where the singular triplets of weights come from, and who is told.

use crate::factor_cache::FactorKey;
use crate::linalg::{Threads, TruncatedSvd, side_by_side, truncated_svd_on};
use crate::{FactorCache, Result, Site};
use candle_core::Device;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// One more weight of those that an adapter needs decomposed is done.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DecompositionProgress<'a> {
    /// The module.
    pub path: &'a str,
    /// Whether its triplets were in the cache.
    pub cached: bool,
    /// How many are done now.
    pub done: usize,
    /// How many there are.
    pub total: usize,
}

type Observer = Arc<dyn Fn(DecompositionProgress<'_>) + Send + Sync>;

/// Decomposes the weights of sites: by computing, or from a [`FactorCache`].
///
/// A method asks its [`ParamBuilder`](crate::ParamBuilder) for the one that the model was given.
#[derive(Clone, Default)]
pub struct Decomposer {
    cache: Option<FactorCache>,
    observer: Option<Observer>,
}

impl fmt::Debug for Decomposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decomposer").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Decomposer {
    /// The same with triplets kept in this cache.
    pub fn with_cache(self, cache: FactorCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The same with a function that is told of every weight that is done, from whichever thread did it.
    pub fn with_observer(self, observer: impl Fn(DecompositionProgress<'_>) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// Calls `work` for every site, side by side, with a [`Decomposition`] of it; a thread has one site's matrix in hand at a time.
    ///
    /// # Errors
    /// The first error in the order of sites, naming the site.
    pub fn each<T: Send>(
        &self,
        sites: &[Site],
        work: impl Fn(usize, Decomposition<'_>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (done, stored) = (AtomicUsize::new(0), AtomicBool::new(false));
        let items: Vec<(usize, &Site)> = sites.iter().enumerate().collect();
        let elements = |(_, site): &(usize, &Site)| site.spec.rows * site.spec.cols;
        let results = side_by_side(&items, elements, |(index, site), threads| {
            let total = sites.len();
            let decomposition = Decomposition { decomposer: self, site, threads, total, done: &done, stored: &stored };
            work(*index, decomposition).map_err(|e| e.at(&site.path))
        });
        if let (Some(cache), true) = (&self.cache, stored.into_inner()) {
            cache.trim();
        }
        results.into_iter().collect()
    }
}

/// The weight of one site, to be decomposed.
#[derive(Clone, Copy, Debug)]
pub struct Decomposition<'a> {
    decomposer: &'a Decomposer,
    site: &'a Site,
    threads: Threads,
    total: usize,
    done: &'a AtomicUsize,
    stored: &'a AtomicBool,
}

impl Decomposition<'_> {
    /// The site.
    pub fn site(&self) -> &Site {
        self.site
    }

    /// The leading singular triplets of its weight, on the CPU: see [`truncated_svd`](crate::linalg::truncated_svd).
    ///
    /// # Errors
    /// When the site has no weight, or one that cannot be decomposed.
    pub fn triplets(&self, r: usize) -> Result<TruncatedSvd> {
        let (svd, cached) = self.find(r)?;
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(path = self.site.path, cached, "singular triplets");
        if let Some(observer) = &self.decomposer.observer {
            observer(DecompositionProgress { path: &self.site.path, cached, done, total: self.total });
        }
        Ok(svd)
    }

    /// The triplets, and whether they were in the cache.
    fn find(&self, r: usize) -> Result<(TruncatedSvd, bool)> {
        let compute = || truncated_svd_on(&self.site.base.canonical()?.to_device(&Device::Cpu)?, r, self.threads);
        let Some(cache) = &self.decomposer.cache else { return Ok((compute()?, false)) };
        let (rows, cols) = self.site.base.canonical()?.dims2()?;
        let key = FactorKey { weight: self.site.weight_hash()?, rows, cols, rank: r.min(rows).min(cols) };
        if let Some(svd) = cache.get(&key) {
            return Ok((svd, true));
        }
        let svd = compute()?;
        if cache.put(&key, &svd) {
            self.stored.store(true, Ordering::Relaxed);
        }
        Ok((svd, false))
    }
}
