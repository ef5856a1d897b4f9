//! PyTorch's CPU random generator, bit for bit.
//!
//! PEFT seeds the projections of a TinyLoRA layer by position and may leave them out of its files, so reading such a file means
//! drawing what PyTorch would draw. The engine is MT19937; the conversion to normal numbers has two arithmetics, because
//! PyTorch's AVX2 build approximates logarithm, sine and cosine by polynomials ([`Arithmetic`]).

mod avx2;
mod mt19937;

use mt19937::Mt19937;

/// How PyTorch computes normal numbers of tensors of 16 elements and more, and uniform ones.
///
/// The two differ in about a third of the standard normal numbers, by 1.1e-6 at the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arithmetic {
    /// What PyTorch runs on every x86 processor with AVX2, those with AVX-512 included.
    #[default]
    Avx2,
    /// What it runs elsewhere, and under `ATEN_CPU_CAPABILITY=default`.
    Scalar,
}

/// A generator in the state of `torch.Generator().manual_seed(seed)` and what follows from it.
#[derive(Clone, Debug)]
pub struct TorchRng {
    engine: Mt19937,
    arithmetic: Arithmetic,
    /// The second half of the last pair of normal numbers made one by one.
    cached_normal: Option<f64>,
}

/// Below this many elements PyTorch draws normal numbers one by one, in f64.
const BLOCK: usize = 16;

impl TorchRng {
    /// A generator for a seed; like PyTorch's, it uses the lower 32 bits, so a negative seed is passed `as u64`.
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed as u32), arithmetic: Arithmetic::default(), cached_normal: None }
    }

    /// The same generator with another arithmetic.
    pub fn with_arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.arithmetic = arithmetic;
        self
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        self.engine.next_u32()
    }

    /// `torch.rand(n)`: uniform in `[0, 1)`.
    pub fn uniform01(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit_f32()).collect()
    }

    /// `tensor.uniform_(low, high)` for `n` f32 elements.
    pub fn uniform(&mut self, low: f64, high: f64, n: usize) -> Vec<f32> {
        let from = low as f32;
        let width = high as f32 - from;
        let arithmetic = self.arithmetic;
        let scale = |unit: f32| match arithmetic {
            Arithmetic::Avx2 => unit.mul_add(width, from),
            Arithmetic::Scalar => unit * width + from,
        };
        (0..n).map(|_| scale(self.unit_f32())).collect()
    }

    /// `kaiming_uniform_(tensor, a)` for `n` f32 elements of a weight with `fan_in` inputs.
    pub fn kaiming_uniform(&mut self, fan_in: usize, a: f64, n: usize) -> Vec<f32> {
        let gain = (2.0 / (1.0 + a * a)).sqrt();
        let bound = 3f64.sqrt() * (gain / (fan_in as f64).sqrt());
        self.uniform(-bound, bound, n)
    }

    /// `tensor.normal_(mean, std)` for `n` f32 elements.
    pub fn normal(&mut self, mean: f64, std: f64, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| (self.standard_normal() * std + mean) as f32).collect();
        }
        let (mean, std) = (mean as f32, std as f32);
        let mut values = self.uniform01(n);
        for block in values.chunks_exact_mut(BLOCK) {
            self.transform(block, mean, std);
        }
        if !n.is_multiple_of(BLOCK) {
            // The last block overlaps the one before it and starts from fresh uniform numbers.
            let fresh = self.uniform01(BLOCK);
            let tail = &mut values[n - BLOCK..];
            tail.copy_from_slice(&fresh);
            self.transform(tail, mean, std);
        }
        values
    }

    /// The Box-Muller transform of 16 uniform numbers: the first eight give radii, the others angles.
    fn transform(&self, block: &mut [f32], mean: f32, std: f32) {
        let (radii, angles) = block.split_at_mut(BLOCK / 2);
        for (first, second) in radii.iter_mut().zip(angles) {
            let (u1, u2) = (1.0 - *first, *second);
            match self.arithmetic {
                Arithmetic::Avx2 => {
                    let radius = (-2.0 * avx2::ln(u1)).sqrt();
                    let (sin, cos) = avx2::sin_cos(std::f32::consts::TAU * u2);
                    *first = (radius * cos).mul_add(std, mean);
                    *second = (radius * sin).mul_add(std, mean);
                }
                Arithmetic::Scalar => {
                    // The platform's logf, sinf and cosf, as in PyTorch.
                    let radius = (-2.0 * u1.ln()).sqrt();
                    let (sin, cos) = ((std::f64::consts::TAU * f64::from(u2)) as f32).sin_cos();
                    *first = radius * cos * std + mean;
                    *second = radius * sin * std + mean;
                }
            }
        }
    }

    fn standard_normal(&mut self) -> f64 {
        if let Some(cached) = self.cached_normal.take() {
            return cached;
        }
        let (u1, u2) = (self.unit_f64(), self.unit_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.cached_normal = Some(radius * sin);
        radius * cos
    }

    fn unit_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00FF_FFFF) as f32 * (1.0 / (1 << 24) as f32)
    }

    fn unit_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let bits = (high << 32) | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}
