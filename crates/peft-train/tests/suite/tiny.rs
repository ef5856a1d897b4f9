//! A tiny Llama with a TinyLoRA, and rows for it.

use candle_core::Device;
use peft_core::{ModuleNames, PeftModel, Registry, TargetSpec};
use peft_models::{CausalLm, load_model};
use peft_tinylora::{TinyLoraConfig, TinyLoraInit};
use peft_train::data::{Dataset, DatasetOptions, Encoder};
use peft_train::sft::SftConfig;
use std::io::Write;
use std::path::PathBuf;

pub(crate) const VOCAB_SIZE: usize = 64;
pub(crate) const MAX_POSITIONS: usize = 64;

pub(crate) fn base_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/base_llama")
}

pub(crate) fn base() -> CausalLm {
    load_model(base_folder(), None, &Device::Cpu).unwrap()
}

/// One trained vector for all modules, so that few steps show.
pub(crate) fn method() -> TinyLoraConfig {
    TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(13).with_weight_tying(1.0)
}

pub(crate) fn with_method(method: TinyLoraConfig) -> PeftModel<CausalLm> {
    let mut model = PeftModel::new(base()).with_base_name("base_llama");
    model.add_adapter("default", method).unwrap();
    model
}

/// A model whose adapter does something.
pub(crate) fn adapted() -> PeftModel<CausalLm> {
    with_method(method().with_init_weights(TinyLoraInit::Uniform))
}

pub(crate) fn with_dropout() -> PeftModel<CausalLm> {
    let mut method = method();
    method.tinylora_dropout = 0.3;
    with_method(method)
}

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<TinyLoraConfig>().unwrap();
    registry
}

/// Rows of 3 to 12 tokens that depend on `salt`.
pub(crate) fn rows(count: usize, salt: usize) -> Vec<Vec<u32>> {
    let token = |row: usize, column: usize| ((row * 7 + column * column * 3 + salt * 11) % VOCAB_SIZE) as u32;
    (0..count).map(|row| (0..3 + (row * 5) % 10).map(|column| token(row, column)).collect()).collect()
}

pub(crate) fn dataset(rows: &[Vec<u32>]) -> Dataset {
    let lines: Vec<String> = rows.iter().map(|row| format!("{{\"input_ids\": {row:?}}}\n")).collect();
    parse(&lines.concat())
}

pub(crate) fn parse(jsonl: &str) -> Dataset {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(jsonl.as_bytes()).unwrap();
    let options = DatasetOptions { max_length: None, context_length: MAX_POSITIONS, vocab_size: VOCAB_SIZE };
    Dataset::from_jsonl(file.path(), &Encoder::default(), options).unwrap()
}

pub(crate) fn config() -> SftConfig {
    SftConfig { steps: 6, batch_size: 3, learning_rate: 0.05, ..SftConfig::default() }
}
