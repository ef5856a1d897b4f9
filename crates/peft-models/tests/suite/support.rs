//! Fixtures, reproducible weights and comparisons.

use candle_core::safetensors::load;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use peft_models::{CausalLm, Gpt2, Gpt2Config, Llama, LlamaConfig, load_model};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

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

/// A Llama of two layers, grouped queries and every optional bias, and its GPT-2 counterpart, both of 40 tokens and 32 positions.
pub(crate) fn tiny_models(dtype: DType) -> [CausalLm; 2] {
    let llama = Llama::new(tiny_llama_config(), NamedWeights::builder(dtype)).unwrap();
    let gpt2 = Gpt2::new(tiny_gpt2_config(), NamedWeights::builder(dtype)).unwrap();
    [llama.into(), gpt2.into()]
}

pub(crate) fn tiny_llama_config() -> LlamaConfig {
    let mut config = LlamaConfig::default();
    config.vocab_size = 40;
    config.hidden_size = 12;
    config.intermediate_size = 20;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = Some(2);
    config.head_dim = Some(4);
    config.max_position_embeddings = 32;
    config.attention_bias = true;
    config.mlp_bias = true;
    config
}

pub(crate) fn tiny_gpt2_config() -> Gpt2Config {
    let mut config = Gpt2Config::default();
    config.vocab_size = 40;
    config.n_embd = 12;
    config.n_layer = 2;
    config.n_head = 3;
    config.n_positions = 32;
    config
}

/// A copy of a model folder whose config and tensors can be changed.
pub(crate) struct Folder {
    dir: TempDir,
}

impl Folder {
    pub(crate) fn copy_of(name: &str) -> Self {
        let dir = TempDir::new().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn config(&self) -> Map<String, Value> {
        serde_json::from_slice(&fs::read(self.file("config.json")).unwrap()).unwrap()
    }

    /// Sets a field of the config; `null` removes it.
    pub(crate) fn set(self, key: &str, value: Value) -> Self {
        let mut config = self.config();
        if value.is_null() {
            config.remove(key);
        } else {
            config.insert(key.into(), value);
        }
        fs::write(self.file("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        self
    }

    pub(crate) fn tensors(&self) -> HashMap<String, Tensor> {
        load(self.file("model.safetensors"), &Device::Cpu).unwrap()
    }

    pub(crate) fn change_tensors(self, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Self {
        let mut tensors = self.tensors();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, self.file("model.safetensors")).unwrap();
        self
    }

    pub(crate) fn load(&self) -> peft_core::Result<CausalLm> {
        load_model(self.path(), None, &Device::Cpu)
    }

    /// The message of the error that loading ends with.
    pub(crate) fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}
