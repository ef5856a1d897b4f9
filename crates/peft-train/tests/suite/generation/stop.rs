//! Strings that end a text.

use candle_core::Device;
use peft_models::{CausalLm, load_model};
use peft_train::generate::{FinishReason, Generation, GenerationConfig, Generator, Request};
use peft_train::tokenizer::Tokenizer;
use std::path::PathBuf;

fn embedded() -> (CausalLm, Tokenizer) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-llama");
    (load_model(&folder, None, &Device::Cpu).unwrap(), Tokenizer::from_folder(&folder).unwrap())
}

const PROMPT: &str = "12+34=";

fn run(strings: &[&str]) -> (Generation, String) {
    let (model, tokenizer) = embedded();
    let config = GenerationConfig { max_new_tokens: 30, temperature: 1.5, seed: 2, ..GenerationConfig::default() };
    let strings = strings.iter().map(|string| (*string).to_owned()).collect();
    let mut generator = Generator::new(config).unwrap().with_stop_strings(&tokenizer, strings).unwrap();
    let prompt = tokenizer.encode_open(PROMPT).unwrap();
    let requests = [Request { prompt: &prompt, samples: 2, stream: 0 }];
    let generation = generator.generate(&model, &requests).unwrap().swap_remove(0).swap_remove(0);
    let text = tokenizer.decode(generation.text_ids(), false).unwrap();
    (generation, text)
}

#[test]
fn a_string_ends_the_text_across_the_borders_of_tokens() {
    let (free, whole) = run(&[]);
    assert_eq!((free.finish_reason, free.ids.len()), (FinishReason::Length, 30));
    // Of one token, and of several.
    for len in [1, 2, 5] {
        for start in [0, 3, 9] {
            let string: String = whole.chars().skip(start).take(len).collect();
            let end = whole.find(&string).unwrap() + string.len();
            let (generation, text) = run(&["never", &string]);
            assert_eq!(generation.finish_reason, FinishReason::Stop);
            assert_eq!(generation.ids, free.ids[..generation.ids.len()]);
            assert_eq!(generation.ids.len(), generation.text_ids().len());
            // No token more than the string needs.
            assert!(text.contains(&string) && text.len() >= end, "{text:?} for {string:?} of {whole:?}");
            let (_, tokenizer) = embedded();
            let before = tokenizer.decode(&generation.ids[..generation.ids.len() - 1], false).unwrap();
            assert!(!before.contains(&string), "{before:?} for {string:?}");
        }
    }
}

#[test]
fn strings_of_the_prompt_do_not_count() {
    let (free, whole) = run(&[]);
    assert!(!whole.contains(PROMPT));
    assert_eq!(run(&[PROMPT, "12+"]).0, free);
}

#[test]
fn an_empty_string_is_refused() {
    let (_, tokenizer) = embedded();
    let generator = Generator::new(GenerationConfig::default()).unwrap();
    let error = generator.with_stop_strings(&tokenizer, vec!["x".to_owned(), String::new()]).unwrap_err().to_string();
    assert!(error.contains("stop strings"), "{error}");
}
