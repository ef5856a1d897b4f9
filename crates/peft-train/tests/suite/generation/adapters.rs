//! Live adapters and merged ones write the same texts.

use candle_core::Device;
use peft_core::{AdapterConfig, ModuleNames, PeftModel, TargetSpec};
use peft_lora::LoraConfig;
use peft_models::{CausalLm, load_model};
use peft_tinylora::TinyLoraConfig;
use peft_train::generate::{GenerationConfig, Generator, Request};
use std::path::PathBuf;

/// The embedded model.
fn embedded() -> CausalLm {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-llama");
    load_model(folder, None, &Device::Cpu).unwrap()
}

fn texts(model: &PeftModel<CausalLm>, temperature: f64) -> Vec<Vec<u32>> {
    let config = GenerationConfig { max_new_tokens: 40, temperature, seed: 1, ..GenerationConfig::default() };
    let prompts: Vec<Vec<u32>> = (0..6).map(|row| (0..4 + row).map(|i| (3 + 2 * row + i) % 13).collect()).collect();
    let requests: Vec<_> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, samples: 3, stream: i as u64 }).collect();
    let generations = Generator::new(config).unwrap().generate(model.base(), &requests).unwrap();
    generations.into_iter().flatten().map(|generation| generation.ids).collect()
}

#[test]
fn merged_adapters_write_what_live_ones_write() {
    let all = || TargetSpec::new(ModuleNames::all_linear());
    let tinylora = TinyLoraConfig::new(all()).with_u(13).with_weight_tying(1.0);
    let methods: [AdapterConfig; 2] = [tinylora.into(), LoraConfig::with_rank(4, all()).into()];
    for method in methods {
        let plain = PeftModel::new(embedded());
        let mut model = PeftModel::new(embedded());
        model.add_adapter("default", method).unwrap();
        move_parameters(&model);
        model.eval().unwrap();
        for temperature in [0.0, 1.0] {
            let live = texts(&model, temperature);
            assert_ne!(live, texts(&plain, temperature), "the adapter changes nothing");
            model.merge().unwrap();
            assert_eq!(texts(&model, temperature), live);
            model.unmerge().unwrap();
            assert_eq!(texts(&model, temperature), live);
        }
    }
}

/// Gives every trainable number a value that depends on its place.
fn move_parameters(model: &PeftModel<CausalLm>) {
    for var in model.vars() {
        let values: Vec<f32> = (0..var.elem_count()).map(|i| ((i * i + 3 * i) as f32 * 0.37).sin() * 0.08).collect();
        var.set(&candle_core::Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}
