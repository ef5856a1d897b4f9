//! Logits of the golden base models equal PyTorch's.

use crate::support::{assert_close, expected, fixture};
use candle_core::{DType, Device, Tensor};
use peft_models::{CausalLanguageModel, CausalLm, ForwardOptions, Gpt2, Llama, load_model};

#[test]
fn llama_logits_equal_pytorchs() {
    let model = Llama::load(fixture("base_llama"), DType::F32, &Device::Cpu).unwrap();
    let golden = expected("tinylora_default");
    let logits = model.forward(&golden["input_ids"], ForwardOptions::all()).unwrap();
    assert_close(&logits, &golden["base_logits"], 1e-5);
}

#[test]
fn gpt2_logits_equal_pytorchs() {
    let model = Gpt2::load(fixture("base_gpt2"), DType::F32, &Device::Cpu).unwrap();
    let golden = expected("gpt2_conv1d");
    let logits = model.forward(&golden["input_ids"], ForwardOptions::all()).unwrap();
    assert_close(&logits, &golden["base_logits"], 1e-5);
}

#[test]
fn bf16_llama_logits_are_as_near_to_exact_ones_as_pytorchs() {
    let golden = expected("tinylora_bf16");
    let ids = &golden["input_ids"];
    let narrow = load_model(fixture("base_llama_bf16"), None, &Device::Cpu).unwrap();
    assert!(matches!(narrow, CausalLm::Llama(_)));
    let logits = narrow.forward(ids, ForwardOptions::all()).unwrap();
    assert_eq!(logits.dtype(), DType::BF16);
    // The same weights computed in f64: what bf16 rounds away.
    let exact = load_model(fixture("base_llama_bf16"), DType::F64, &Device::Cpu).unwrap();
    let exact = exact.forward(ids, ForwardOptions::all()).unwrap();
    let mean = |a: &Tensor| {
        let error = (a.to_dtype(DType::F64).unwrap() - &exact).unwrap().abs().unwrap();
        error.mean_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let (ours, pytorchs) = (mean(&logits), mean(&golden["base_logits"]));
    assert!(ours <= pytorchs * 1.05, "off by {ours} on average, PyTorch by {pytorchs}");
}
