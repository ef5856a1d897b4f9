//! Dropout whose masks come from a seed, so that a run can be repeated and resumed.

use crate::Mode;
use candle_core::{Result, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::sync::atomic::{AtomicU64, Ordering};

/// Zeroes each element with probability `p` in training and scales the others by `1 / (1 - p)`.
///
/// candle's CPU generator cannot be seeded; this one draws the mask of its n-th call after [`Dropout::reseed`] from the seed,
/// the `stream` it was made with, and n, and from nothing else. When a [`peft_nn::checkpoint`] runs a forward pass again, seed and n
/// are those of the first time.
#[derive(Debug)]
pub struct Dropout {
    p: f32,
    stream: u64,
    seed: AtomicU64,
    calls: AtomicU64,
}

impl Dropout {
    /// Dropout with probability `p` in `[0, 1]`. Layers of one model take different `stream`s to get different masks.
    pub fn new(p: f32, stream: u64) -> Self {
        Self { p, stream, seed: AtomicU64::new(0), calls: AtomicU64::new(0) }
    }

    /// Restarts the sequence of masks.
    pub fn reseed(&self, seed: u64) {
        self.seed.store(seed, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
    }

    /// Whether [`Dropout::forward`] changes anything in this mode.
    pub fn drops(&self, mode: Mode) -> bool {
        self.p > 0.0 && mode == Mode::Train
    }

    /// Drops elements of `xs` in training; hands them through at inference.
    pub fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        if !self.drops(mode) {
            return Ok(xs.clone());
        }
        let seed = peft_nn::remembered(|| self.seed.load(Ordering::Relaxed))?;
        let call = peft_nn::remembered(|| self.calls.fetch_add(1, Ordering::Relaxed))?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.stream);
        // Each call has a stretch of the stream to itself, longer than any mask.
        rng.set_word_pos(u128::from(call) << 36);
        let keep = if self.p < 1.0 { 1.0 / (1.0 - self.p) } else { 0.0 };
        let threshold = (f64::from(self.p) * 2f64.powi(32)) as u64;
        let mask: Vec<f32> =
            (0..xs.elem_count()).map(|_| if u64::from(rng.next_u32()) < threshold { 0.0 } else { keep }).collect();
        let mask = Tensor::from_vec(mask, xs.shape(), xs.device())?.to_dtype(xs.dtype())?;
        peft_nn::mul_frozen(xs, &mask)
    }
}
