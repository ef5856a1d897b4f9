//! Initial values of the factors.

use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};
use peft_core::torch_rng::TorchRng;
use peft_core::{Decomposition, Error, HostKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How fresh factors begin (`init_lora_weights`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
#[non_exhaustive]
pub enum LoraInit {
    /// `true`: A random, B zero, so that the adapter begins as the identity. Embeddings have A zero and B random.
    #[default]
    Identity,
    /// `"gaussian"`: as `true`, with A normal of variance `1 / r^2`.
    Gaussian,
    /// `false`: both factors random.
    Random,
    /// `"pissa"`: the leading singular directions of the weight ([PiSSA](https://arxiv.org/abs/2404.02948)).
    Pissa,
    /// `"olora"`: the first columns of the weight's QR decomposition ([OLoRA](https://arxiv.org/abs/2406.01775)).
    Olora,
    /// `"eva"`: from a decomposition of activations ([EVA](https://arxiv.org/abs/2410.07170)). Read from files alone: the base is
    /// unchanged, so that a trained adapter is an ordinary one.
    Eva,
    /// `"orthogonal"`: factors orthogonal to each other. Read from files alone, as [`Eva`](Self::Eva).
    Orthogonal,
}

impl LoraInit {
    /// Whether factors begin as a part of the weight, which the adapter then takes out of it.
    pub(crate) fn decomposes(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora)
    }

    /// Whether adapters that began so can be read, but no fresh one can be made.
    pub(crate) fn is_for_files(self) -> bool {
        matches!(self, Self::Eva | Self::Orthogonal)
    }

    /// The name as configs spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Identity => "true",
            Self::Random => "false",
            Self::Gaussian => "gaussian",
            Self::Pissa => "pissa",
            Self::Olora => "olora",
            Self::Eva => "eva",
            Self::Orthogonal => "orthogonal",
        }
    }

    /// The factors `(r, cols)` and `(rows, r)` that a site begins with when [`LoraInit::decomposes`], in f32 on the CPU.
    ///
    /// # Errors
    /// When the site has no weight at hand, is not linear or smaller than `r`, or cannot be decomposed.
    pub(crate) fn decompose(self, decomposition: Decomposition<'_>, r: usize, scale: f64) -> Result<Pair> {
        let site = decomposition.site();
        let name = self.name();
        let (rows, cols) = (site.spec.rows, site.spec.cols);
        if site.spec.kind != HostKind::Linear {
            return Err(Error::config(format!(
                "`init_lora_weights` \"{name}\" is for linear layers, not for an embedding"
            )));
        }
        if r > rows.min(cols) {
            return Err(Error::config(format!(
                "`r` is {r}, more than the {rows} x {cols} weight allows with \"{name}\""
            )));
        }
        if self == Self::Pissa {
            let svd = decomposition.triplets(r)?;
            let root = (svd.s / scale)?.sqrt()?;
            return Ok(Pair { a: svd.vt.broadcast_mul(&root.unsqueeze(1)?)?, b: svd.u.broadcast_mul(&root)? });
        }
        let weight = site.base.canonical()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let b = orthonormal(&weight.narrow(1, 0, r)?)?;
        Ok(Pair { a: b.t()?.contiguous()?.matmul(&weight.contiguous()?)?, b })
    }

    /// The values that PEFT draws for a site, discarded draws included, so that equal seeds give equal adapters. A `bias` of that
    /// length belongs to B (`lora_bias`).
    pub(crate) fn draw(self, rng: &mut TorchRng, kind: HostKind, a: Size, b: Size, bias: Option<usize>) -> Drawn {
        let (count_a, count_b) = (a.0 * a.1, b.0 * b.1);
        let zeros = |n: usize| vec![0.0; n];
        if kind == HostKind::Embedding {
            let first = (rng.normal(0.0, 1.0, count_a), rng.normal(0.0, 1.0, count_b));
            let (a, b) = match self {
                Self::Random => first,
                _ => (zeros(count_a), rng.normal(0.0, 1.0, count_b)),
            };
            return Drawn { a, b, bias: zeros(bias.unwrap_or(0)) };
        }
        let slope = 5f64.sqrt();
        let first = (rng.kaiming_uniform(a.1, slope, count_a), rng.kaiming_uniform(b.1, slope, count_b));
        let bound = 1.0 / (b.1 as f64).sqrt();
        let first_bias = bias.map(|n| rng.uniform(-bound, bound, n)).unwrap_or_default();
        let bias = zeros(first_bias.len());
        match self {
            Self::Random => Drawn { a: first.0, b: first.1, bias: first_bias },
            Self::Gaussian => Drawn { a: rng.normal(0.0, 1.0 / a.0 as f64, count_a), b: zeros(count_b), bias },
            _ => Drawn { a: rng.kaiming_uniform(a.1, slope, count_a), b: zeros(count_b), bias },
        }
    }
}

/// Rows and columns.
pub(crate) type Size = (usize, usize);

/// Two factors: `a` `(r, cols)` and `b` `(rows, r)`.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
}

/// Drawn values, row by row.
#[derive(Debug)]
pub(crate) struct Drawn {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// The orthonormal factor of the QR decomposition of a `(rows, r)` matrix, `rows >= r`.
fn orthonormal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, r) = matrix.dims2()?;
    let values: Vec<f32> = matrix.flatten_all()?.to_vec1()?;
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::Decomposition(format!("the weight holds {bad} in f32")));
    }
    let q: Mat<f32> = MatRef::from_row_major_slice(&values, rows, r).qr().compute_thin_Q();
    let q: Vec<f32> = (0..rows).flat_map(|i| (0..r).map(move |j| (i, j))).map(|at| q[at]).collect();
    Ok(Tensor::from_vec(q, (rows, r), &Device::Cpu)?)
}

impl TryFrom<Value> for LoraInit {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        const NAMED: [LoraInit; 5] =
            [LoraInit::Gaussian, LoraInit::Pissa, LoraInit::Olora, LoraInit::Eva, LoraInit::Orthogonal];
        let known = match &value {
            Value::Bool(true) => Some(Self::Identity),
            Value::Bool(false) => Some(Self::Random),
            Value::String(name) => NAMED.into_iter().find(|init| name.eq_ignore_ascii_case(init.name())),
            _ => None,
        };
        known.ok_or_else(|| match &value {
            Value::String(name) if name.starts_with("pissa_niter_") => format!(
                "`init_lora_weights` is \"{name}\", a random approximation that cannot be made again when the adapter is read; use \
                 \"pissa\""
            ),
            _ => {
                let names = NAMED.map(|init| format!("\"{}\"", init.name())).join(", ");
                format!("`init_lora_weights` is {value}; supported are true, false, {names}")
            }
        })
    }
}

impl From<LoraInit> for Value {
    fn from(init: LoraInit) -> Self {
        match init {
            LoraInit::Identity => true.into(),
            LoraInit::Random => false.into(),
            named => named.name().into(),
        }
    }
}
