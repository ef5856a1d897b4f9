//! Fixtures and small models.

use candle_core::{DType, Device, Module, Tensor};
use peft_core::checkpoint::SafetensorsFile;
use peft_core::nn::{Embedding, Linear};
use peft_core::{
    AdapterLayer, AdapterMethod, BaseWeight, HostKind, HostSpec, HostView, ModuleNames, ParamBuilder, ParamStore,
    PeftModel, Registry, Result, Site, TargetSpec, TensorSource, WeightLayout, adaptable,
};
use peft_tinylora::TinyLoraConfig;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// The fixtures of this crate.
pub(crate) fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The fixtures that the whole workspace shares.
pub(crate) fn shared(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<TinyLoraConfig>().unwrap();
    registry
}

pub(crate) fn tensors(path: impl AsRef<Path>) -> Tensors {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.load(&name, &Device::Cpu).unwrap().unwrap())).collect()
}

pub(crate) fn json(path: impl AsRef<Path>) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn config(dir: &Path) -> TinyLoraConfig {
    let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    registry().parse(&text).unwrap().method.downcast_ref::<TinyLoraConfig>().unwrap().clone()
}

/// A config for tests that build layers directly; targets play no part there.
pub(crate) fn plain() -> TinyLoraConfig {
    TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear()))
}

pub(crate) fn site(path: &str, kind: HostKind, weight: Tensor, layout: WeightLayout) -> Site {
    let spec = HostSpec::of_weight(kind, &weight, layout);
    let base = BaseWeight::Dense { weight, layout };
    Site::new(path, spec, base)
}

/// A host that a layer under test is shown and has no reason to look at.
pub(crate) fn unseen(weight: &Tensor) -> HostView<'_> {
    HostView::new(weight, WeightLayout::OutIn, None)
}

pub(crate) fn linear_site(path: &str, weight: Tensor) -> Site {
    site(path, HostKind::Linear, weight, WeightLayout::OutIn)
}

/// Layers and parameters, fresh or from a source.
pub(crate) fn build(
    config: &TinyLoraConfig,
    sites: &[Site],
    source: Option<&dyn TensorSource>,
) -> Result<(Vec<Arc<dyn AdapterLayer>>, ParamStore)> {
    let mut params = ParamBuilder::new(source);
    let layers = config.build(sites, &mut params)?;
    Ok((layers, params.finish()?))
}

/// What a checkpoint of these parameters holds.
pub(crate) fn saved(params: &ParamStore) -> Tensors {
    params.persisted().map(|(key, tensor)| (key.to_string(), tensor.copy().unwrap())).collect()
}

/// Overwrites every trained vector with numbers between -0.5 and 0.5.
pub(crate) fn fill(params: &ParamStore) {
    for (i, (_, var)) in params.trainable().enumerate() {
        let values = values(var.elem_count(), i as u64 + 1);
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

/// Numbers between -0.5 and 0.5 that a seed determines.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    peft_core::torch_rng::TorchRng::new(seed).uniform(-0.5, 0.5, n)
}

pub(crate) fn random(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(values(shape.elem_count(), seed), shape, &Device::Cpu).unwrap()
}

pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let difference = (wide(a) - wide(b)).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    difference.to_scalar().unwrap()
}

pub(crate) fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let difference = largest_difference(a, b);
    assert!(difference <= tolerance, "{what}: {difference:e} apart");
}

/// The same dtype, shape and bits.
pub(crate) fn assert_same(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.dtype(), b.dtype(), "{what}");
    assert_eq!(a.dims(), b.dims(), "{what}");
    let bits = |t: &Tensor| -> Vec<u64> {
        let t = t.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        t.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    };
    let (a, b) = (bits(a), bits(b));
    let differing = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    assert_eq!(differing, 0, "{what}: {differing} of {} differ", a.len());
}

/// An embedding, a linear layer and a Conv1D, as in `make.py`.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    emb: Embedding,
    lin: Linear,
    conv: Linear,
}
adaptable!(Small { emb, lin, conv });

impl Small {
    /// From the base weights in an `expected.safetensors`.
    pub(crate) fn new(tensors: &Tensors) -> Self {
        let weight = |name: &str| tensors[&format!("base.{name}")].clone();
        Self {
            emb: Embedding::new(weight("emb.weight")),
            lin: Linear::new(weight("lin.weight"), Some(weight("lin.bias"))),
            conv: Linear::from_transposed(weight("conv.weight"), Some(weight("conv.bias"))),
        }
    }

    pub(crate) fn model(tensors: &Tensors) -> PeftModel<Self> {
        PeftModel::new(Self::new(tensors))
    }

    pub(crate) fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.conv.forward(&self.lin.forward(&self.emb.forward(ids)?)?.tanh()?)
    }
}

/// An adapter that PEFT made on one of the shared base models.
pub(crate) struct Golden {
    pub(crate) config: TinyLoraConfig,
    pub(crate) sites: Vec<Site>,
    pub(crate) checkpoint: Tensors,
    pub(crate) expected: Tensors,
}

/// Every shared case whose projections a fresh adapter draws too.
pub(crate) const GOLDEN: [&str; 15] = [
    "gpt2_conv1d",
    "gpt2_conv1d_bias_all",
    "tinylora_all_linear_tied",
    "tinylora_bf16",
    "tinylora_default",
    "tinylora_embedding",
    "tinylora_layers_to_transform",
    "tinylora_modules_to_save",
    "tinylora_no_projection",
    "tinylora_no_projection_u3r1",
    "tinylora_odd_groups",
    "tinylora_partial_tying",
    "tinylora_rank_clamped",
    "tinylora_regex",
    "tinylora_two_adapters",
];

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let dir = shared(name);
        let case = json(dir.join("case.json"));
        let base = case["base"].as_str().unwrap();
        let weights = tensors(shared(base).join("model.safetensors"));
        let modules = case["modules"].as_array().unwrap().iter().map(|m| m.as_str().unwrap());
        let sites = modules.map(|path| {
            let kind = if path.ends_with("embed_tokens") { HostKind::Embedding } else { HostKind::Linear };
            let layout = if base == "base_gpt2" { WeightLayout::InOut } else { WeightLayout::OutIn };
            let weight = weights.get(&format!("{path}.weight")).cloned();
            // GPT-2's file leaves the name of its trunk out.
            let weight =
                weight.or_else(|| weights.get(&format!("{}.weight", path.strip_prefix("transformer.")?)).cloned());
            site(path, kind, weight.unwrap(), layout)
        });
        Self {
            config: config(&dir),
            sites: sites.collect(),
            checkpoint: tensors(dir.join("adapter_model.safetensors")),
            expected: tensors(dir.join("expected.safetensors")),
        }
    }

    /// The tensors of the checkpoint that are TinyLoRA's own.
    pub(crate) fn own(&self) -> Tensors {
        self.checkpoint
            .iter()
            .filter(|(name, _)| name.contains("tinylora_"))
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect()
    }
}
