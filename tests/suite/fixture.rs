//! The cases under `tests/fixtures`: what PEFT wrote, and what it computed with it.

use candle_core::{DType, Device, Tensor};
use candle_peft::PeftModel;
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::nn::cross_entropy;
use std::collections::HashMap;
use std::path::PathBuf;

/// The TinyLoRA adapters.
pub(crate) const TINYLORA: [&str; 16] = [
    "tinylora_default",
    "tinylora_all_linear_tied",
    "tinylora_partial_tying",
    "tinylora_odd_groups",
    "tinylora_no_projection",
    "tinylora_no_projection_u3r1",
    "tinylora_embedding",
    "tinylora_rank_clamped",
    "tinylora_bf16",
    "tinylora_layers_to_transform",
    "tinylora_modules_to_save",
    "tinylora_regex",
    "tinylora_two_adapters",
    "tinylora_two_adapters/other",
    "gpt2_conv1d",
    "gpt2_conv1d_bias_all",
];

/// Plain LoRA adapters.
pub(crate) const LORA: [&str; 10] = [
    "lora_default",
    "lora_rslora_rank_pattern",
    "lora_embedding",
    "lora_gpt2_conv1d",
    "lora_bias_conv1d",
    "lora_exclude_modules",
    "lora_exclude_pattern",
    "lora_options",
    "converted_lora",
    "converted_lora_threshold",
];

/// DoRA.
pub(crate) const DORA: [&str; 3] = ["lora_dora", "lora_dora_conv1d", "lora_dora_embedding"];

/// Adapters that begin as a part of the weight: PiSSA and OLoRA.
pub(crate) const DECOMPOSED: [&str; 3] = ["lora_pissa", "lora_pissa_conv1d", "lora_olora"];

/// The IA3 adapters.
pub(crate) const IA3: [&str; 6] =
    ["ia3_default", "ia3_gpt2", "ia3_modules_to_save", "ia3_regex", "ia3_head", "ia3_bf16"];

/// The VeRA adapters.
pub(crate) const VERA: [&str; 6] =
    ["vera_default", "vera_no_projection", "vera_shapes", "vera_layers_to_transform", "vera_bf16", "vera_gpt2_conv1d"];

/// One case.
pub(crate) struct Case {
    pub(crate) dir: PathBuf,
    pub(crate) base: PathBuf,
    expected: HashMap<String, Tensor>,
}

impl Case {
    pub(crate) fn open(name: &str) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let top = name.split('/').next().unwrap();
        let case: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(root.join(top).join("case.json")).unwrap()).unwrap();
        let dir = root.join(name);
        let expected = candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
        Self { base: root.join(case["base"].as_str().unwrap()), dir, expected }
    }

    pub(crate) fn expected(&self, name: &str) -> &Tensor {
        self.expected.get(name).unwrap_or_else(|| panic!("no `{name}` in {}", self.dir.display()))
    }

    /// The expected tensors whose names begin with `prefix`, without it.
    pub(crate) fn expected_under(&self, prefix: &str) -> Vec<(&str, &Tensor)> {
        self.expected.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t))).collect()
    }

    pub(crate) fn base_model(&self) -> PeftModel<CausalLm> {
        PeftModel::new(load_model(&self.base, None, &Device::Cpu).unwrap())
    }

    /// The base model with the case's adapter.
    pub(crate) fn adapted(&self) -> PeftModel<CausalLm> {
        let mut model = self.base_model();
        model.load_adapter("default", &self.dir, &candle_peft::registry().unwrap()).unwrap();
        model
    }

    pub(crate) fn is_dora(&self) -> bool {
        DORA.iter().any(|name| self.dir.ends_with(name))
    }

    /// The merged weight of a module minus the base's own.
    pub(crate) fn change_by_merging(&self, path: &str) -> Tensor {
        let base = candle_core::safetensors::load(self.base.join("model.safetensors"), &Device::Cpu).unwrap();
        (self.expected(&format!("merged_weight.{path}")) - &base[&format!("{path}.weight")]).unwrap()
    }

    pub(crate) fn is_16_bit(&self) -> bool {
        self.base.ends_with("base_llama_bf16")
    }

    /// Whether a part of the weight is taken out, which PEFT and this crate each find by a decomposition of their own: PEFT's is
    /// up to 5e-6 off the exact one, in an element of the delta.
    pub(crate) fn is_decomposed(&self) -> bool {
        DECOMPOSED.iter().any(|name| self.dir.ends_with(name))
    }

    /// PEFT's bf16 case differs from exact arithmetic by up to 0.09; everything else agrees to f32 rounding.
    pub(crate) fn tolerance(&self) -> f32 {
        match (self.is_16_bit(), self.is_decomposed()) {
            (true, _) => 0.09,
            (_, true) => 2e-5,
            _ => 1e-5,
        }
    }

    /// The same for the change of a weight: f32 products of this size agree to the last bits; the bf16 fixture's is rounded.
    pub(crate) fn delta_tolerance(&self) -> f32 {
        match (self.is_16_bit(), self.is_decomposed()) {
            (true, _) => 1e-2,
            (_, true) => 6e-6,
            _ => 1e-6,
        }
    }

    pub(crate) fn logits(&self, model: &PeftModel<CausalLm>) -> Tensor {
        model.base().forward(self.expected("input_ids"), ForwardOptions::all()).unwrap().to_dtype(DType::F32).unwrap()
    }

    /// Mean cross-entropy of each position's logits against the next token.
    pub(crate) fn loss(&self, logits: &Tensor) -> Tensor {
        let ids = self.expected("input_ids");
        let last = ids.dim(1).unwrap() - 1;
        let labels = ids.narrow(1, 1, last).unwrap();
        cross_entropy(&logits.narrow(1, 0, last).unwrap(), &labels, -100).unwrap().mean().unwrap()
    }
}

/// The largest difference between two tensors.
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap().contiguous().unwrap();
    let difference = (wide(a) - wide(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference.is_finite(), "a difference is {difference}");
    difference
}

#[track_caller]
pub(crate) fn assert_close(what: &str, a: &Tensor, b: &Tensor, limit: f32) {
    let difference = difference(a, b);
    assert!(difference <= limit, "{what}: {difference} > {limit}");
}

/// The elements as bits, for exact comparison.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}
