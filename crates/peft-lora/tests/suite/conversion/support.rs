//! A model with one host of each kind, and deltas as matrices in f64.

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use peft_core::nn::{Embedding, Linear};
use peft_core::torch_rng::TorchRng;
use peft_core::{Adaptable, ModuleNames, PeftModel, TargetSpec, adaptable};
use peft_lora::{ConvertedLora, LoraConfig};
use peft_testkit::assert::values;
use std::collections::BTreeMap;

pub(super) type Tensors = BTreeMap<String, Tensor>;

/// Three hosts of the same `(rows, cols)`; the weight of `conv` is stored `(cols, rows)`.
#[derive(Clone, Debug)]
pub(super) struct Net {
    embed_tokens: Embedding,
    linear: Linear,
    conv: Linear,
}
adaptable!(Net { embed_tokens, linear, conv });

/// The paths of a [`Net`].
pub(super) const HOSTS: [&str; 3] = ["embed_tokens", "linear", "conv"];

impl Net {
    pub(super) fn new(rows: usize, cols: usize, dtype: DType) -> Self {
        let noise = |shape: (usize, usize), seed| random(shape, seed).to_dtype(dtype).unwrap();
        Self {
            embed_tokens: Embedding::new(noise((rows, cols), 1)),
            linear: Linear::new(noise((rows, cols), 2), None),
            conv: Linear::from_transposed(noise((cols, rows), 3), None),
        }
    }
}

/// Normal numbers in f64 that a seed determines.
pub(super) fn random(shape: (usize, usize), seed: u64) -> Tensor {
    let values = TorchRng::new(seed).normal(0.0, 1.0, shape.0 * shape.1);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

/// A model with a LoRA called `default` that has these factors, `a` `(r, cols)` and `b` `(rows, r)`, at every host.
pub(super) fn with_factors(a: &Tensor, b: &Tensor, lora_alpha: f64) -> PeftModel<Net> {
    let mut tensors = Tensors::new();
    for host in HOSTS {
        let named = match host {
            "embed_tokens" => [("lora_embedding_A", b.t().unwrap()), ("lora_embedding_B", a.t().unwrap())],
            _ => [("lora_A.weight", a.clone()), ("lora_B.weight", b.clone())],
        };
        for (name, tensor) in named {
            tensors.insert(format!("base_model.model.{host}.{name}"), tensor.contiguous().unwrap());
        }
    }
    let mut config = LoraConfig::with_rank(a.dim(0).unwrap(), TargetSpec::new(ModuleNames::list(HOSTS)));
    config.lora_alpha = lora_alpha;
    let mut model = PeftModel::new(Net::new(b.dim(0).unwrap(), a.dim(1).unwrap(), a.dtype()));
    model.add_from_source("default", config, &tensors).unwrap();
    model
}

/// A model with the converted adapter alone, read as PEFT's files are.
pub(super) fn load<M: Adaptable>(base: M, lora: &ConvertedLora) -> PeftModel<M> {
    let mut model = PeftModel::new(base);
    model.add_from_source("default", lora.config.clone(), &lora.tensors).unwrap();
    model
}

/// What an adapter adds to the weight of a host, as it is stored.
pub(super) fn delta<M: Adaptable>(model: &PeftModel<M>, path: &str) -> Mat<f64> {
    let delta = model.delta_weight("default", path).unwrap();
    let (rows, cols) = delta.dims2().unwrap();
    let values = values(&delta).unwrap();
    Mat::from_fn(rows, cols, |i, j| values[i * cols + j])
}

/// All singular values, in descending order.
pub(super) fn spectrum(matrix: &Mat<f64>) -> Vec<f64> {
    matrix.thin_svd().unwrap().S().column_vector().iter().copied().collect()
}

/// The least relative error that any matrix of rank `k` has, by the theorem of Eckart and Young.
pub(super) fn least_error(spectrum: &[f64], k: usize) -> f64 {
    let norm = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>().sqrt();
    norm(&spectrum[k.min(spectrum.len())..]) / norm(spectrum)
}

/// `|exact - found| / |exact|` in Frobenius norms.
pub(super) fn distance(exact: &Mat<f64>, found: &Mat<f64>) -> f64 {
    (exact - found).norm_l2() / exact.norm_l2()
}
