//! MLX-LM's folders, read back with the safetensors crate.

use crate::support::{CASES, assert_same, base, delta, fixture, lora, product, zeros};
use candle_core::{Device, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_export::{BaseModel, to_mlx};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// An adapter folder as MLX-LM would read it.
struct Folder {
    config: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Folder {
    fn of(adapter: &DetachedAdapter, base: &BaseModel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("mlx");
        to_mlx(adapter, base).unwrap().save(&out).unwrap();
        let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["adapter_config.json", "adapters.safetensors"]);
        let bytes = fs::read(out.join("adapters.safetensors")).unwrap();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            tensors.insert(name, Tensor::from_vec(values, view.shape(), &Device::Cpu).unwrap());
        }
        Self { config: serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap(), tensors }
    }

    fn parameters(&self) -> &Value {
        &self.config["lora_parameters"]
    }

    /// What MLX-LM adds to a weight, `(rows, cols)`.
    fn delta(&self, path: &str, embedding: bool) -> Tensor {
        let [a, b] = ["lora_a", "lora_b"].map(|name| &self.tensors[&format!("{path}.{name}")]);
        let scale = self.parameters()["scale"].as_f64().unwrap();
        let product = product(a, b);
        (if embedding { product } else { product.t().unwrap() } * scale).unwrap()
    }
}

/// The path that MLX-LM has for a module of transformers.
fn renamed(path: &str) -> String {
    path.replacen("transformer.", "model.", 1)
}

#[test]
fn every_delta_is_the_one_that_peft_computed() {
    for name in CASES {
        let (adapter, base, case) = fixture(name);
        let folder = Folder::of(&adapter, &base);
        let mut compared = 0;
        for (path, expected) in case.expected_under("delta.") {
            let embedding = path.ends_with("embed_tokens");
            // PEFT's deltas have the layout of the weight, and GPT-2's weights are transposed.
            let expected = if path.starts_with("transformer.") { expected.t().unwrap() } else { expected.clone() };
            let found = folder.delta(&renamed(path), embedding);
            assert_same(&format!("{name}: {path}"), &found, &expected);
            compared += 1;
        }
        assert_eq!(compared, adapter.sites.len(), "{name}");
    }
}

#[test]
fn one_rank_holds_modules_of_several() {
    let (adapter, base, _) = fixture("lora_rslora_rank_pattern");
    let folder = Folder::of(&adapter, &base);
    assert_eq!(
        folder.config,
        json!({
            "fine_tune_type": "lora",
            "num_layers": 2,
            "lora_parameters": {
                "rank": 6, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"],
            },
        })
    );
    for site in &adapter.sites {
        let factors = site.layer.lora_factors().unwrap().unwrap();
        let r = factors.a.dim(0).unwrap();
        let [a, b] = ["lora_a", "lora_b"].map(|name| &folder.tensors[&format!("{}.{name}", site.path)]);
        assert_eq!((a.dims(), b.dims()), (&[site.spec.cols, 6][..], &[6, site.spec.rows][..]), "{}", site.path);
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&a.narrow(1, 0, r).unwrap().t().unwrap()), values(&factors.a), "{}", site.path);
        for padding in [a.narrow(1, r, 6 - r), b.narrow(0, r, 6 - r)].map(Result::unwrap) {
            assert!(padding.elem_count() == 0 || values(&padding).iter().all(|value| *value == 0.0), "{}", site.path);
        }
    }
}

#[test]
fn blocks_without_a_module_get_factors_of_zero() {
    let modules = [
        ("model.layers.1.self_attn.q_proj", 8, 6, 2),
        ("model.layers.2.self_attn.q_proj", 8, 6, 2),
        ("model.layers.2.mlp.down_proj", 6, 10, 1),
    ];
    let adapter = lora(&modules);
    let folder = Folder::of(&adapter, &base("llama"));
    // The first of three blocks is not adapted at all.
    assert_eq!(folder.config["num_layers"], 2);
    assert_eq!(folder.parameters()["keys"], json!(["mlp.down_proj", "self_attn.q_proj"]));
    assert_eq!(folder.tensors.len(), 8);
    for (path, ..) in modules {
        assert_same(path, &folder.delta(path, false), &delta(&adapter, path));
    }
    assert_same("hole", &folder.delta("model.layers.1.mlp.down_proj", false), &zeros(6, 10));
}

#[test]
fn embedding_and_head_are_named_in_full() {
    let modules = [("model.embed_tokens", 11, 6, 2), ("lm_head", 11, 6, 3)];
    let adapter = lora(&modules);
    let folder = Folder::of(&adapter, &base("qwen3"));
    assert_eq!(folder.parameters()["keys"], json!(["lm_head", "model.embed_tokens"]));
    assert_eq!(folder.config["num_layers"], 0);
    assert_same("embedding", &folder.delta("model.embed_tokens", true), &delta(&adapter, "model.embed_tokens"));
    assert_same("head", &folder.delta("lm_head", false), &delta(&adapter, "lm_head"));
}

#[test]
fn base_weights_that_came_along_are_reported() {
    let (adapter, base, _) = fixture("lora_embedding");
    assert_eq!(to_mlx(&adapter, &base).unwrap().assumed_base_weights, ["model.embed_tokens"]);
    let (adapter, base, _) = fixture("lora_default");
    assert!(to_mlx(&adapter, &base).unwrap().assumed_base_weights.is_empty());
}

#[test]
fn an_adapter_of_peft_is_not_overwritten() {
    let (adapter, base, case) = fixture("lora_default");
    let dir = tempfile::tempdir().unwrap();
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    for name in files {
        fs::copy(case.adapter.join(name), dir.path().join(name)).unwrap();
    }
    let error = to_mlx(&adapter, &base).unwrap().save(dir.path()).unwrap_err().to_string();
    assert!(error.contains("PEFT adapter") && error.contains(dir.path().to_str().unwrap()), "{error}");
    for name in files {
        assert_eq!(fs::read(case.adapter.join(name)).unwrap(), fs::read(dir.path().join(name)).unwrap());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
