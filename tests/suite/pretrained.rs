//! One line from a name to a model with its adapter.

use candle_core::{DType, Device, Tensor};
use candle_peft::hub::{Hub, Settings};
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::{FromPretrained, ModuleNames, PeftModel, Pretrained, PretrainedError, TargetSpec, TinyLlama};
use peft_testkit::assert::assert_same;
use peft_testkit::hub::LoopbackHub;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// An adapter of the embedded model, as a folder, and what the model computes with it.
fn adapter(base_name: &str) -> (TempDir, Tensor) {
    let (tiny, dir) = (TinyLlama::unpack().unwrap(), tempfile::tempdir().unwrap());
    let base = load_model(tiny.path(), DType::F32, &Device::Cpu).unwrap();
    let mut model = PeftModel::new(base).with_base_name(base_name);
    let config = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(3);
    model.add_adapter("default", config).unwrap();
    for (i, var) in model.vars().iter().enumerate() {
        var.set(&Tensor::full(0.1 * (i as f32 + 1.0).sin(), var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    model.eval().unwrap();
    model.save_adapter("default", dir.path()).unwrap();
    (dir, logits(&model))
}

fn logits(model: &PeftModel<CausalLm>) -> Tensor {
    let ids = Tensor::new(&[[1u32, 20, 46, 22, 64]], &Device::Cpu).unwrap();
    model.base().forward(&ids, ForwardOptions::all()).unwrap().to_dtype(DType::F32).unwrap()
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn upload(hub: &LoopbackHub, repo: &str, dir: &Path) -> String {
    let files = files(dir);
    hub.commit(repo, "main", files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())))
}

#[test]
fn an_adapter_of_the_embedded_model_needs_no_network() {
    let (dir, expected) = adapter(TinyLlama::NAME);
    let model = PeftModel::from_pretrained(dir.path().to_str().unwrap()).unwrap();
    assert_same("logits", &logits(&model), &expected);
    assert_eq!(model.active().collect::<Vec<_>>(), ["default"]);
}

#[test]
fn adapter_and_base_come_from_the_hub() {
    let server = LoopbackHub::start().unwrap();
    let (dir, expected) = adapter("maker/base");
    let base = upload(&server, "maker/base", TinyLlama::unpack().unwrap().path());
    upload(&server, "user/adapter", dir.path());
    let cache = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(cache.path());
    settings.endpoint = server.endpoint();
    let pretrained = || Pretrained::new().unwrap().with_hub(Hub::new(settings.clone()));
    let model = pretrained().load("user/adapter").unwrap();
    assert_same("logits", &logits(&model), &expected);
    // What it is saved as says which commit of the base it ran on.
    let again = dir.path().join("again");
    model.save_adapter("default", &again).unwrap();
    let saved = fs::read_to_string(again.join("adapter_config.json")).unwrap();
    assert!(saved.contains(&format!("\"revision\": \"{base}\"")), "{saved}");
    // A base of one's own, another dtype, and one more adapter of the same model in the way folders are loaded.
    let tiny = TinyLlama::unpack().unwrap();
    let own = pretrained().with_base(tiny.path().to_str().unwrap()).with_dtype(DType::BF16);
    let mut model = own.load("user/adapter@main").unwrap();
    assert_eq!(model.base().dtype(), DType::BF16);
    let registry = candle_peft::registry().unwrap();
    let hub = Hub::new(settings.clone());
    model.load_adapter("second", hub.adapter("user/adapter").unwrap(), &registry).unwrap();
    pretrained().load_adapter(&mut model, "third", "user/adapter").unwrap();
    model.load_pretrained("fourth", dir.path().to_str().unwrap()).unwrap();
    assert_eq!(model.active().collect::<Vec<_>>(), ["fourth"]);
    assert_eq!(model.adapters().len(), 4);
}

#[test]
fn what_cannot_be_had_is_an_error_that_says_why() {
    let (dir, _) = adapter("/home/maker/base");
    let name = dir.path().to_str().unwrap();
    let error = PeftModel::from_pretrained(name).unwrap_err();
    assert!(matches!(error, PretrainedError::LostBase { .. }), "{error:?}");
    for part in [name, "/home/maker/base", "no such folder", "with_base"] {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/base_llama");
    let error = Pretrained::new().unwrap().with_base(small.to_str().unwrap()).load(name).unwrap_err();
    assert!(matches!(error, PretrainedError::OtherBase { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("made for /home/maker/base and does not fit") && text.contains("base_llama"), "{text}");
    let error = PeftModel::from_pretrained("/no/such/folder").unwrap_err();
    assert!(matches!(error, PretrainedError::Hub(_)), "{error:?}");
}
