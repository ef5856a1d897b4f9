//! The frozen random matrices between the factors.

use peft_core::{Error, Result, torch_rng::TorchRng};

/// Numbers in one projection at the most; more is a mistake in `u`.
const LARGEST: usize = 1 << 28;

/// Checks that `u` matrices of order `r` are of a size that can be meant.
pub(crate) fn check_size(u: usize, r: usize) -> Result<()> {
    let size = r.checked_mul(r).and_then(|rr| rr.checked_mul(u));
    if size.is_some_and(|size| size <= LARGEST) {
        return Ok(());
    }
    Err(Error::config(format!(
        "`u` = {u} matrices of {r} x {r} are more than the {LARGEST} numbers a projection may have"
    )))
}

/// `u` matrices of order `r`: normal numbers of variance `1 / r`, drawn by PyTorch's generator.
pub(crate) fn draw(seed: i64, u: usize, r: usize) -> Vec<f32> {
    // A negative seed wraps around, as PyTorch's does; the generator uses the lower 32 bits.
    TorchRng::new(seed as u64).normal(0.0, 1.0 / (r as f64).sqrt(), u * r * r)
}
