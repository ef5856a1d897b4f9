//! llama.cpp's files, read back with candle's reader.

use crate::support::{CASES, assert_same, base, delta, fixture, lora, product};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_export::{BaseModel, GgufAdapter, to_gguf};
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;

/// An adapter file as llama.cpp would read it.
pub(crate) struct File {
    metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl File {
    pub(crate) fn of(adapter: &DetachedAdapter, base: &BaseModel) -> Self {
        Self::saved(&to_gguf(adapter, base).unwrap())
    }

    fn saved(gguf: &GgufAdapter) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/adapter.gguf");
        gguf.save(&path).unwrap();
        let mut file = Cursor::new(fs::read(path).unwrap());
        let content = Content::read(&mut file).unwrap();
        let mut tensors = BTreeMap::new();
        for (name, info) in &content.tensor_infos {
            assert_eq!(info.ggml_dtype, GgmlDType::F32, "{name}");
            let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            tensors.insert(name.clone(), tensor.dequantize(&Device::Cpu).unwrap());
        }
        Self { metadata: content.metadata.into_iter().collect(), tensors }
    }

    fn text(&self, key: &str) -> &str {
        self.metadata[key].to_string().unwrap()
    }

    /// What llama.cpp adds to a weight, rows in its order.
    pub(crate) fn delta(&self, weight: &str) -> Tensor {
        let [a, b] = ["lora_a", "lora_b"].map(|name| &self.tensors[&format!("{weight}.{name}")]);
        let rank = b.dim(1).unwrap();
        let scale = f64::from(self.metadata["adapter.lora.alpha"].to_f32().unwrap()) / rank as f64;
        let product = if weight == "token_embd.weight" { product(a, &b.t().unwrap()) } else { product(b, a) };
        (product * scale).unwrap()
    }
}

/// The name of a module of the fixtures in llama.cpp, and the heads whose rows are in another order there.
fn renamed(path: &str) -> (String, Option<usize>) {
    if path == "model.embed_tokens" {
        return ("token_embd.weight".into(), None);
    }
    let mut parts = path.split('.').skip(2);
    let index = parts.next().unwrap();
    let (name, heads) = match parts.collect::<Vec<_>>().join(".").as_str() {
        "self_attn.q_proj" => ("attn_q", Some(4)),
        "self_attn.k_proj" => ("attn_k", Some(2)),
        "self_attn.v_proj" => ("attn_v", None),
        "self_attn.o_proj" => ("attn_output", None),
        "mlp.gate_proj" => ("ffn_gate", None),
        "mlp.up_proj" => ("ffn_up", None),
        "mlp.down_proj" => ("ffn_down", None),
        "attn.c_attn" => ("attn_qkv", None),
        "mlp.c_fc" => ("ffn_up", None),
        other => panic!("{other}"),
    };
    (format!("blk.{index}.{name}.weight"), heads)
}

/// The rows of a matrix from llama.cpp's order to transformers': of each head first the even rows, then the odd ones.
fn in_order(rows: &Tensor, heads: usize) -> Tensor {
    let count = rows.dim(0).unwrap();
    let size = count / heads;
    let source = |row: usize| {
        let (head, feature) = (row / size, row % size);
        let (half, pair) = (feature / (size / 2), feature % (size / 2));
        (head * size + 2 * pair + half) as u32
    };
    let order = Tensor::from_vec((0..count).map(source).collect::<Vec<_>>(), count, &Device::Cpu).unwrap();
    rows.contiguous().unwrap().index_select(&order, 0).unwrap()
}

#[test]
fn every_delta_is_the_one_that_peft_computed() {
    for name in CASES {
        let (adapter, base, case) = fixture(name);
        let file = File::of(&adapter, &base);
        assert_eq!(file.tensors.len(), 2 * adapter.sites.len(), "{name}");
        let mut compared = 0;
        for (path, expected) in case.expected_under("delta.") {
            let (weight, heads) = renamed(path);
            let found = file.delta(&weight);
            let found = heads.map_or(found.clone(), |heads| in_order(&found, heads));
            // PEFT's deltas have the layout of the weight, and GPT-2's weights are transposed.
            let expected = if path.starts_with("transformer.") { expected.t().unwrap() } else { expected.clone() };
            assert_same(&format!("{name}: {path}"), &found, &expected);
            compared += 1;
        }
        assert_eq!(compared, adapter.sites.len(), "{name}");
    }
}

#[test]
fn the_metadata_is_that_of_an_adapter() {
    let (adapter, base, _) = fixture("lora_rslora_rank_pattern");
    let gguf = to_gguf(&adapter, &base).unwrap();
    let file = File::saved(&gguf);
    assert_eq!(file.text("general.type"), "adapter");
    assert_eq!(file.text("general.architecture"), "llama");
    assert_eq!(file.text("adapter.type"), "lora");
    assert_eq!(file.metadata["adapter.lora.alpha"].to_f32().unwrap(), 6.0);
    assert_eq!(file.metadata.len(), 5);
    let named = File::saved(&gguf.with_name("sums"));
    assert_eq!(named.text("general.name"), "sums");
}

#[test]
fn factors_keep_their_ranks_and_right_factors_their_values() {
    let (adapter, base, _) = fixture("lora_rslora_rank_pattern");
    let file = File::of(&adapter, &base);
    for site in &adapter.sites {
        let factors = site.layer.lora_factors().unwrap().unwrap();
        let (weight, _) = renamed(&site.path);
        let [a, b] = ["lora_a", "lora_b"].map(|name| &file.tensors[&format!("{weight}.{name}")]);
        assert_eq!((a.dims(), b.dims()), (factors.a.dims(), factors.b.dims()), "{}", site.path);
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(a), values(&factors.a), "{}", site.path);
    }
}

#[test]
fn embeddings_are_stored_by_entry() {
    let adapter = lora(&[("model.embed_tokens", 11, 6, 2), ("lm_head", 11, 6, 3)]);
    let file = File::of(&adapter, &base("qwen2"));
    assert_eq!(file.tensors["token_embd.weight.lora_a"].dims(), [11, 2]);
    assert_eq!(file.tensors["token_embd.weight.lora_b"].dims(), [6, 2]);
    assert_same("embedding", &file.delta("token_embd.weight"), &delta(&adapter, "model.embed_tokens"));
    assert_same("head", &file.delta("output.weight"), &delta(&adapter, "lm_head"));
}

#[test]
fn saving_replaces_an_older_file_and_leaves_others_alone() {
    let (adapter, base, _) = fixture("lora_default");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("adapter.gguf"), "old").unwrap();
    fs::write(dir.path().join("other"), "mine").unwrap();
    to_gguf(&adapter, &base).unwrap().save(dir.path().join("adapter.gguf")).unwrap();
    assert!(fs::read(dir.path().join("adapter.gguf")).unwrap().starts_with(b"GGUF"));
    assert_eq!(fs::read_to_string(dir.path().join("other")).unwrap(), "mine");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
