//! The frozen random matrices between the factors.

use candle_core::{DType, Device, Tensor};
use peft_core::{Error, Result, adapter_dtype, torch_rng::TorchRng};

/// Numbers in one projection at the most; more is a mistake in `u`.
const LARGEST: usize = 1 << 28;

/// How far apart the same draw can lie under the two arithmetics of PyTorch's generator; draws of other seeds differ by about 1.
const ARITHMETICS_APART: f64 = 1e-5;

/// What determines the projection of one site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection {
    /// `projection_seed` plus the position of the site.
    pub(crate) seed: i64,
    /// How many matrices there are.
    pub(crate) u: usize,
    /// Their order.
    pub(crate) r: usize,
    /// The dtype whose values they have.
    pub(crate) dtype: DType,
}

impl Projection {
    /// Checks that the matrices are of a size that can be meant.
    pub(crate) fn check_size(u: usize, r: usize) -> Result<()> {
        let size = r.checked_mul(r).and_then(|rr| rr.checked_mul(u));
        if size.is_some_and(|size| size <= LARGEST) {
            return Ok(());
        }
        Err(Error::config(format!(
            "`u` = {u} matrices of {r} x {r} are more than the {LARGEST} numbers a projection may have"
        )))
    }

    /// The matrices `(u, r, r)` on the CPU: normal numbers of variance `1 / r`, drawn in f32 by PyTorch's generator.
    pub(crate) fn draw(&self) -> Result<Tensor> {
        // A negative seed wraps around, as PyTorch's does; the generator uses the lower 32 bits.
        let mut rng = TorchRng::new(self.seed as u64);
        let values = rng.normal(0.0, 1.0 / (self.r as f64).sqrt(), self.u * self.r * self.r);
        let drawn = Tensor::from_vec(values, (self.u, self.r, self.r), &Device::Cpu)?;
        Ok(drawn.to_dtype(self.dtype)?.to_dtype(adapter_dtype(self.dtype))?)
    }

    /// Whether stored matrices are those that [`Projection::draw`] makes, up to the arithmetic of the machine that drew them.
    pub(crate) fn is(&self, stored: &Tensor) -> Result<bool> {
        // The distance between neighbours in the dtype, relative to the value: a small difference may fall on a rounding edge.
        let spacing = match self.dtype {
            DType::BF16 => 2f64.powi(-7),
            DType::F16 => 2f64.powi(-10),
            _ => 0.0,
        };
        let drawn = self.draw()?.to_dtype(DType::F64)?;
        let stored = stored.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let allowed = ((drawn.abs()? * spacing)? + ARITHMETICS_APART)?;
        let near = (drawn - stored)?.abs()?.le(&allowed)?;
        Ok(near.flatten_all()?.min(0)?.to_scalar::<u8>()? == 1)
    }
}
