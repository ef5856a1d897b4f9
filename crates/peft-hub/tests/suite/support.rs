//! A Hub with a model and an adapter on it, and an empty cache.

use peft_hub::{Hub, Progress, Settings, Token};
use peft_testkit::hub::LoopbackHub;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const TOKEN: &str = "hf_secretSECRETsecret";
pub(crate) const ADAPTER: &str = "user/adapter";
pub(crate) const MODEL: &str = "user/model";

/// The tensors' stand-in: longer than what the Hub keeps in git, and no byte like the next.
pub(crate) fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
}

pub(crate) struct Place {
    pub(crate) server: LoopbackHub,
    pub(crate) cache: TempDir,
    /// The adapter's commit.
    pub(crate) commit: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let server = LoopbackHub::start().unwrap();
        let readme = ("README.md", b"# not needed".to_vec());
        let config = ("adapter_config.json", br#"{"peft_type": "LORA"}"#.to_vec());
        let state = ("training_state.bin", vec![1; 5000]);
        let commit = server.commit(ADAPTER, "main", [readme, config, ("adapter_model.safetensors", weights()), state]);
        Self { server, cache: tempfile::tempdir().unwrap(), commit }
    }

    /// As [`Place::new`], with a model of two shards too.
    pub(crate) fn with_model() -> Self {
        let place = Self::new();
        let index = br#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
        let files = [
            ("config.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index.to_vec()),
            ("model-1-of-2.safetensors", weights()),
            ("model-2-of-2.safetensors", weights().into_iter().rev().collect()),
            ("tokenizer.json", b"{\"model\": {}}".to_vec()),
            ("merges.txt", b"a b".to_vec()),
            ("pytorch_model.bin", vec![7; 4000]),
            ("onnx/model.onnx", vec![8; 4000]),
        ];
        place.server.commit(MODEL, "main", files);
        place
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.cache.path());
        settings.endpoint = self.server.endpoint();
        settings.pause = Duration::from_millis(1);
        settings.answer_timeout = Duration::from_millis(500);
        settings.stall_timeout = Duration::from_millis(500);
        settings.attempts = 3;
        settings
    }

    pub(crate) fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    pub(crate) fn hub_with(&self, change: impl FnOnce(&mut Settings)) -> Hub {
        let mut settings = self.settings();
        change(&mut settings);
        Hub::new(settings)
    }

    pub(crate) fn hub_as_user(&self) -> Hub {
        self.hub_with(|settings| settings.token = Token::new(TOKEN))
    }

    /// The files in the cache, by path, with what they hold; links are followed.
    pub(crate) fn cached(&self, below: &str) -> Vec<(String, Vec<u8>)> {
        let root = self.cache.path().join(below);
        let mut files = vec![];
        walk(&root, &mut |path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            files.push((name, fs::read(path).unwrap()));
        });
        files.sort();
        files
    }

    pub(crate) fn blob(&self, repo: &str, hash: &str) -> PathBuf {
        self.cache.path().join(format!("models--{}", repo.replace('/', "--"))).join("blobs").join(hash)
    }
}

fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, see) } else { see(&path) }
    }
}

/// Where `GET` or `HEAD` finds a file of the adapter.
pub(crate) fn resolve(place: &Place, method: &str, file: &str) -> String {
    format!("{method} /{ADAPTER}/resolve/{}/{file}", place.commit)
}

/// Remembers what was reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(pub(crate) Arc<Mutex<Vec<String>>>);

impl Heard {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl Progress for Heard {
    fn begin(&self, file: &str, done: u64, total: u64) {
        self.push(format!("begin {file} {done}/{total}"));
    }

    fn at(&self, done: u64) {
        self.push(format!("at {done}"));
    }

    fn end(&self) {
        self.push("end".to_owned());
    }

    fn retry(&self, reason: &str, pause: Duration) {
        self.push(format!("retry {reason} {pause:?}"));
    }

    fn note(&self, line: &str) {
        self.push(format!("note {line}"));
    }
}

/// Asserts that an error says all of this, and no secret.
pub(crate) fn assert_says(error: &peft_hub::Error, parts: &[&str]) {
    let text = error.to_string();
    assert!(!text.contains(TOKEN) && !format!("{error:?}").contains(TOKEN), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}
