//! The random matrices that all layers of an adapter share.

use crate::VeraConfig;
use candle_core::{DType, Device, Tensor};
use peft_core::torch_rng::TorchRng;
use peft_core::{Error, HostSpec, ParamBuilder, ParamKey, Projection, Result, Site, adapter_dtype};
use std::collections::BTreeMap;

/// Numbers in one projection at the most; more is a mistake in `r`.
const LARGEST: usize = 1 << 30;

/// A and B, as large as the largest adapted layer in each direction.
#[derive(Debug)]
pub(crate) struct Projections {
    /// `(r, widest)`
    a: Tensor,
    /// `(tallest, r)`
    b: Tensor,
    /// The first columns of A by how many there are, so that layers of one width share them.
    columns: BTreeMap<usize, Tensor>,
}

impl Projections {
    /// The projections for these sites, drawn in PyTorch's order or read.
    ///
    /// They lie where the first site lies.
    pub(crate) fn new(config: &VeraConfig, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Self> {
        let r = config.r;
        let largest =
            |size: fn(&HostSpec) -> usize| sites.iter().map(|site| size(&site.spec)).max().unwrap_or_default();
        let (tallest, widest) = (largest(|spec| spec.rows), largest(|spec| spec.cols));
        if r.checked_mul(tallest.max(widest)).is_none_or(|size| size > LARGEST) {
            return Err(Error::config(format!(
                "`r` is {r}; with layers of up to {tallest} x {widest} that makes a projection of more than {LARGEST} numbers"
            )));
        }
        let projection = Projection {
            seed_field: "projection_prng_key",
            seed: config.projection_prng_key,
            saved: config.save_projection,
            values: values(sites),
        };
        let device = sites.first().map_or(Device::Cpu, |site| site.spec.device.clone());
        // A negative key wraps around, as PyTorch's does; the generator uses the lower 32 bits.
        let generator = || TorchRng::new(config.projection_prng_key as u64);
        let draw_a = |rng: &mut TorchRng| rng.kaiming_uniform(widest, 0.0, r * widest);
        let draw_b = |rng: &mut TorchRng| rng.kaiming_uniform(r, 0.0, tallest * r);
        let a =
            projection.param(ParamKey::shared("vera_A"), (r, widest), &device, params, || draw_a(&mut generator()))?;
        let b = projection.param(ParamKey::shared("vera_B"), (tallest, r), &device, params, || {
            // One generator draws both, A first.
            let mut rng = generator();
            draw_a(&mut rng);
            draw_b(&mut rng)
        })?;
        Ok(Self { a, b, columns: BTreeMap::new() })
    }

    /// What a layer uses: the first columns of A `(r, cols)` and the first rows of B `(rows, r)`.
    pub(crate) fn of(&mut self, host: &HostSpec) -> Result<(Tensor, Tensor)> {
        let HostSpec { rows, cols, dtype, ref device, .. } = *host;
        let a = match self.columns.get(&cols) {
            Some(a) => a.clone(),
            None => self.a.narrow(1, 0, cols)?.contiguous()?,
        };
        self.columns.insert(cols, a.clone());
        let own = |shared: Tensor| shared.to_device(device)?.to_dtype(adapter_dtype(dtype));
        Ok((own(a)?, own(self.b.narrow(0, 0, rows)?)?))
    }
}

/// The dtype whose values the projections have: PEFT rounds the shared ones for every layer in turn.
fn values(sites: &[Site]) -> DType {
    let occurs = |dtype: &DType| sites.iter().any(|site| site.values == *dtype);
    [DType::BF16, DType::F16, DType::F64].into_iter().find(occurs).unwrap_or(DType::F32)
}
