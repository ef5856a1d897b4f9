//! Fixtures, reproducible weights and comparisons.

use candle_core::safetensors::load;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::HashMap;
use std::path::PathBuf;

/// A folder of the golden fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// What PyTorch computed for a golden case.
pub(crate) fn expected(case: &str) -> HashMap<String, Tensor> {
    load(fixture(case).join("expected.safetensors"), &Device::Cpu).unwrap()
}

/// The largest absolute difference of two tensors of one shape.
pub(crate) fn max_diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let diff = (wide(a) - wide(b)).unwrap().abs().unwrap();
    diff.max_all().unwrap().to_scalar().unwrap()
}

pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let diff = max_diff(a, b);
    assert!(diff <= tolerance, "differ by {diff:e}, more than {tolerance:e}");
}

/// Token ids `(batch, seq)` below `vocab`, with some variety.
pub(crate) fn token_ids(batch: usize, seq: usize, vocab: usize) -> Tensor {
    let ids: Vec<u32> = (0..batch * seq).map(|i| ((i * 7 + i * i * 3 + 5) % vocab) as u32).collect();
    Tensor::from_vec(ids, (batch, seq), &Device::Cpu).unwrap()
}

/// Weights that depend on nothing but their names: normally distributed, norms around one.
pub(crate) struct NamedWeights {
    pub(crate) stdev: f64,
}

impl NamedWeights {
    pub(crate) fn builder(dtype: DType) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Self { stdev: 0.2 }), dtype, Device::Cpu)
    }

    pub(crate) fn tensor(&self, name: &str, shape: &Shape) -> Tensor {
        let mut state =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut normal = || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let centre = if name.contains("norm") || name.contains("ln_") { 1.0 } else { 0.0 };
        let values: Vec<f64> = (0..shape.elem_count()).map(|_| centre + self.stdev * normal()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

impl SimpleBackend for NamedWeights {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.tensor(name, &shape).to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        name != "lm_head.weight"
    }
}
