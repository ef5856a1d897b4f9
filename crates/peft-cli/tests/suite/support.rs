//! Running the binary, and folders to run it on.

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// What a run of the binary ended with.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Outcome {
    /// The object on standard output, which must be the only thing there.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        let value: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(value.is_object(), "{value}");
        value
    }

    pub(crate) fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// An error of this exit code that says all of this, on standard error alone.
    pub(crate) fn expect_error(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        for part in says {
            assert!(self.stderr.contains(part), "`{part}` is not in: {}", self.stderr);
        }
    }
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candle-peft"));
    command.env_remove("RUST_BACKTRACE");
    // No test reaches the network, or whatever the user has in their cache; those of the Hub say where it is.
    for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HF_ENDPOINT"] {
        command.env_remove(variable);
    }
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nowhere");
    command.env("CANDLE_PEFT_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs the binary with these words; those with spaces come in as `extra`.
pub(crate) fn run(words: &str, extra: &[&str]) -> Outcome {
    command().args(words.split_whitespace()).args(extra).output().unwrap().into()
}

pub(crate) fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    path.to_str().unwrap().to_owned()
}

/// A folder to work in: the base model's path, a data file, and an adapter on demand.
pub(crate) struct Workplace {
    dir: TempDir,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<String> =
            (1..=6u32).map(|i| format!("{{\"input_ids\": [1, {}, {}, {}, 2]}}\n", i * 5, i * 7, i + 3)).collect();
        fs::write(dir.path().join("data.jsonl"), rows.concat()).unwrap();
        Self { dir }
    }

    /// The path of something in the folder.
    pub(crate) fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.dir.path().join(name), text).unwrap();
        self.at(name)
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.dir.path().join(name).exists()
    }

    /// The names of everything in the folder, hidden or not.
    pub(crate) fn names(&self) -> Vec<String> {
        names(self.dir.path())
    }

    /// A fresh adapter of 13 numbers on q_proj and v_proj of the fixture's Llama.
    pub(crate) fn adapter(&self, name: &str) -> String {
        let out = self.at(name);
        let words = format!("init --base {} {METHOD} --out {out}", fixture("base_llama"));
        run(&words, &[]).expect_success();
        out
    }

    /// A copy of that adapter after `change`.
    pub(crate) fn changed_adapter(&self, name: &str, change: impl FnOnce(&mut Files)) -> String {
        let out = self.adapter(name);
        let mut files = Files::read(&out);
        change(&mut files);
        files.write(&out);
        out
    }
}

pub(crate) const METHOD: &str =
    "--method tinylora --set u=13 --set target_modules=q_proj,v_proj --set init_weights=uniform";

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An adapter folder in memory.
pub(crate) struct Files {
    pub(crate) config: Map<String, Value>,
    pub(crate) tensors: HashMap<String, Tensor>,
}

impl Files {
    pub(crate) fn read(dir: &str) -> Self {
        let dir = Path::new(dir);
        let config = serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap();
        let tensors = candle_core::safetensors::load(dir.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
        Self { config, tensors }
    }

    fn write(&self, dir: &str) {
        let dir = Path::new(dir);
        fs::write(dir.join("adapter_config.json"), serde_json::to_vec(&self.config).unwrap()).unwrap();
        candle_core::safetensors::save(&self.tensors, dir.join("adapter_model.safetensors")).unwrap();
    }
}

/// Sizes of a Llama made up for a test.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) tied: bool,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { layers: 2, hidden: 32, intermediate: 64, tied: false }
    }
}

/// Writes a model folder with 64 tokens and 64 positions.
pub(crate) fn write_llama(dir: &str, sizes: Sizes) -> String {
    let Sizes { layers, hidden, intermediate, tied } = sizes;
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let salt = name.bytes().map(f32::from).sum::<f32>();
        let value = |index: usize| if shape.len() == 1 { 1.0 } else { 0.2 * (index as f32 * 1.7 + salt).sin() };
        let tensor = Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap();
        tensors.insert(name, tensor);
    };
    add("model.embed_tokens.weight".into(), &[64, hidden]);
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        for name in ["self_attn.q_proj", "self_attn.o_proj"] {
            add(name, &[hidden, hidden]);
        }
        for name in ["self_attn.k_proj", "self_attn.v_proj"] {
            add(name, &[hidden / 2, hidden]);
        }
        for name in ["mlp.gate_proj", "mlp.up_proj"] {
            add(name, &[intermediate, hidden]);
        }
        add("mlp.down_proj", &[hidden, intermediate]);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
    }
    add("model.norm.weight".into(), &[hidden]);
    if !tied {
        add("lm_head.weight".into(), &[64, hidden]);
    }
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden / 4, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 64, "tie_word_embeddings": tied, "hidden_act": "silu",
        "torch_dtype": "float32", "eos_token_id": 2,
    });
    fs::create_dir_all(dir).unwrap();
    fs::write(Path::new(dir).join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(&tensors, Path::new(dir).join("model.safetensors")).unwrap();
    dir.to_owned()
}

/// A tokenizer of the words `w0` to `w63`, with a chat template.
pub(crate) fn write_tokenizer(dir: &str) {
    let vocab: Map<String, Value> = (0..64).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    let template = "{% for m in messages %}w1 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}";
    fs::write(Path::new(dir).join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "w2", "chat_template": template});
    fs::write(Path::new(dir).join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Runs every command that reads an adapter and expects the same complaint from each, and no new file.
pub(crate) fn every_reader_refuses(place: &Workplace, base: &str, adapter: &str, says: &[&str]) {
    let (data, out) = (place.at("data.jsonl"), place.at("out"));
    let before = place.names();
    for words in [
        format!("eval --base {base} --adapter {adapter} --data {data}"),
        format!("train --base {base} --adapter {adapter} --data {data} --out {out} --steps 2 --learning-rate 0.1"),
        format!("merge --base {base} --adapter {adapter} --out {out}"),
        format!("inspect {adapter} --base {base}"),
    ] {
        run(&words, &[]).expect_error(1, says);
        assert_eq!(place.names(), before, "{words}");
    }
}
