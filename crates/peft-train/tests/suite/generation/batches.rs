//! Many texts side by side: each is what it is alone.

use crate::allocations::allocated;
use crate::tiny;
use candle_core::{DType, Device, Tensor};
use peft_core::PeftModel;
use peft_models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use peft_train::generate::{FinishReason, Generation, GenerationConfig, Generator, Request, generate};
use peft_train::{Error, Result};

/// Prompts of many lengths, the longest over a page of the cache.
fn prompts() -> Vec<Vec<u32>> {
    let token = |row: usize, i: usize| ((row * 37 + i * i * 5 + 3 * i + 1) % tiny::VOCAB_SIZE) as u32;
    [3, 1, 17, 40, 8, 2, 30, 5]
        .iter()
        .enumerate()
        .map(|(row, len)| (0..*len).map(|i| token(row, i)).collect())
        .collect()
}

fn requests(prompts: &[Vec<u32>]) -> Vec<Request<'_>> {
    const SAMPLES: [usize; 4] = [2, 1, 4, 3];
    let request = |(i, prompt)| Request { prompt, samples: SAMPLES[i % 4], stream: i as u64 * 5 };
    prompts.iter().map(Vec::as_slice).enumerate().map(request).collect()
}

/// The ids of a text, its log-probabilities and entropies as bits, and why it ended.
type Text = (Vec<u32>, Vec<u32>, Vec<u32>, FinishReason);

fn bits(generations: &[Vec<Generation>]) -> Vec<Text> {
    let to_bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect();
    let all = generations.iter().flatten();
    all.map(|g| (g.ids.clone(), to_bits(&g.log_probs), to_bits(&g.entropies), g.finish_reason)).collect()
}

fn sampling() -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: 20,
        temperature: 1.2,
        seed: 3,
        stop_ids: vec![5, 9],
        ..GenerationConfig::default()
    }
}

fn configs() -> [GenerationConfig; 3] {
    let cut = GenerationConfig { top_k: Some(20), top_p: 0.9, min_p: 0.02, repetition_penalty: 1.2, ..sampling() };
    [sampling(), cut, GenerationConfig { temperature: 0.0, ..sampling() }]
}

fn gpt2() -> CausalLm {
    load_model(tiny::base_folder().with_file_name("base_gpt2"), None, &Device::Cpu).unwrap()
}

/// A Llama with a live adapter, the same in bf16, and a GPT-2.
fn models() -> Vec<CausalLm> {
    let mut adapted = tiny::adapted();
    adapted.eval().unwrap();
    let mut narrow = PeftModel::new(load_model(tiny::base_folder(), DType::BF16, &Device::Cpu).unwrap());
    narrow.add_adapter("default", tiny::method()).unwrap();
    narrow.eval().unwrap();
    vec![adapted.base().clone(), narrow.base().clone(), gpt2()]
}

#[test]
fn neither_the_others_nor_the_rows_nor_the_threads_show_in_the_bits() {
    let prompts = prompts();
    let requests = requests(&prompts);
    for model in models() {
        for config in configs() {
            let run = |max_rows: usize, requests: &[Request<'_>]| {
                let config = GenerationConfig { max_rows, ..config.clone() };
                bits(&Generator::new(config).unwrap().generate(&model, requests).unwrap())
            };
            let all = run(64, &requests);
            assert!(all.iter().any(|text| text.3 == FinishReason::Length));
            assert_eq!(run(1, &requests), all);
            assert_eq!(run(3, &requests), all);
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| run(5, &requests)), all);
            }
            let alone: Vec<_> = requests.iter().flat_map(|request| run(2, std::slice::from_ref(request))).collect();
            assert_eq!(alone, all);
            let backwards: Vec<Request<'_>> = requests.iter().rev().copied().collect();
            let mut texts = run(4, &backwards);
            let mut sorted = all.clone();
            for texts in [&mut texts, &mut sorted] {
                texts.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
            }
            assert_eq!(texts, sorted);
        }
    }
}

#[test]
fn samples_differ_in_stream_and_number() {
    let prompts = prompts();
    let mut model = tiny::adapted();
    model.eval().unwrap();
    let mut generator = Generator::new(sampling()).unwrap();
    let request = |stream, samples| Request { prompt: &prompts[0], samples, stream };
    let texts = generator.generate(model.base(), &[request(0, 3), request(1, 3), request(0, 5)]).unwrap();
    let first: Vec<&Vec<u32>> = texts[..2].iter().flatten().map(|generation| &generation.ids).collect();
    for (i, text) in first.iter().enumerate() {
        assert!(first[..i].iter().all(|other| other != text), "{first:?}");
    }
    // More samples of a request are the same and some more.
    assert_eq!(bits(&texts[..1]), bits(&texts[2..])[..3]);
    // One prompt alone is the first sample of stream 0.
    let alone = generate(&mut model, &prompts[0], &sampling(), &mut |_| Ok(())).unwrap();
    assert_eq!(bits(&[vec![alone]]), bits(&texts[..1])[..1]);
}

/// Log-probabilities and entropies against those of a pass over the whole text, as in training.
#[test]
fn log_probs_are_those_of_a_training_pass() {
    let prompts = prompts();
    let requests = requests(&prompts);
    let mut adapted = tiny::adapted();
    adapted.eval().unwrap();
    for model in [adapted.base().clone(), gpt2()] {
        for config in configs() {
            let texts = Generator::new(config.clone()).unwrap().generate(&model, &requests).unwrap();
            let temperature = if config.temperature == 0.0 { 1.0 } else { config.temperature };
            for (request, generation) in
                requests.iter().zip(&texts).flat_map(|(request, texts)| texts.iter().map(move |text| (request, text)))
            {
                assert_eq!(generation.ids.len(), generation.log_probs.len());
                assert_eq!(generation.ids.len(), generation.entropies.len());
                let ids = [request.prompt, &generation.ids].concat();
                let input = Tensor::new(&ids[..ids.len() - 1], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                let logits = model.forward(&input, ForwardOptions::all()).unwrap().squeeze(0).unwrap();
                let logits = (logits / temperature).unwrap();
                let labels = Tensor::new(&ids[1..], &Device::Cpu).unwrap().to_dtype(DType::I64).unwrap();
                let losses = peft_nn::cross_entropy(&logits, &labels, peft_nn::IGNORE_INDEX).unwrap();
                let losses = losses.per_token().to_vec1::<f32>().unwrap();
                let first = request.prompt.len() - 1;
                for (loss, log_prob) in losses[first..].iter().zip(&generation.log_probs) {
                    assert!((loss + log_prob).abs() < 1e-4, "{log_prob} is not {}", -loss);
                }
                let rows = logits.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
                for (row, entropy) in rows[first..].iter().zip(&generation.entropies) {
                    let top = row.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = row.iter().map(|x| (x - top).exp()).sum();
                    let log_probs = row.iter().map(|x| x - top - total.ln());
                    let exact = -log_probs.map(|p| p * p.exp()).sum::<f64>();
                    assert!((f64::from(*entropy) - exact).abs() < 1e-4, "{entropy} is not {exact}");
                }
            }
        }
    }
}

#[test]
fn tokens_are_seen_as_they_come() {
    let prompts = prompts();
    let requests = requests(&prompts);
    let model = gpt2();
    let mut generator = Generator::new(GenerationConfig { max_rows: 3, ..sampling() }).unwrap();
    let mut seen: Vec<Vec<Vec<u32>>> = requests.iter().map(|request| vec![vec![]; request.samples]).collect();
    let mut most = 0;
    let texts = generator.generate_with(&model, &requests, &mut |request, sample, id| {
        seen[request][sample].push(id);
        most = most.max(seen[request][sample].len());
        Ok(())
    });
    let texts = texts.unwrap();
    for (request, texts) in texts.iter().enumerate() {
        for (sample, text) in texts.iter().enumerate() {
            assert_eq!(text.text_ids(), seen[request][sample]);
        }
    }
    // A failure ends all, and leaves the generator usable.
    let mut left = 7;
    let failed: Result<_> = generator.generate_with(&model, &requests, &mut |_, _, _| {
        left -= 1;
        if left == 0 { Err(Error::option("test", "enough")) } else { Ok(()) }
    });
    assert!(failed.unwrap_err().to_string().contains("enough"));
    assert_eq!(left, 0);
    assert_eq!(bits(&generator.generate(&model, &requests).unwrap()), bits(&texts));
}

#[test]
fn a_generator_takes_one_model_after_another() {
    let prompts = prompts();
    let requests = requests(&prompts);
    let mut generator = Generator::new(sampling()).unwrap();
    for model in models().iter().chain(&models()) {
        let fresh = Generator::new(sampling()).unwrap().generate(model, &requests).unwrap();
        assert_eq!(bits(&generator.generate(model, &requests).unwrap()), bits(&fresh));
    }
}

#[test]
fn nothing_is_asked_for() {
    let model = gpt2();
    let prompt = [1, 2];
    let run = |config: GenerationConfig, requests: &[Request<'_>]| {
        Generator::new(config).unwrap().generate(&model, requests).unwrap()
    };
    assert!(run(sampling(), &[]).is_empty());
    let none = Request { prompt: &prompt, samples: 0, stream: 0 };
    let two = Request { samples: 2, ..none };
    let texts = run(sampling(), &[none, two, none]);
    assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [0, 2, 0]);
    let texts = run(GenerationConfig { max_new_tokens: 0, ..sampling() }, &[two]);
    assert!(texts[0].iter().all(|text| text.ids.is_empty() && text.finish_reason == FinishReason::Length));
}

#[test]
fn each_text_ends_with_the_models_positions() {
    let prompts = prompts();
    let requests: Vec<Request<'_>> = prompts.iter().map(|prompt| Request { prompt, samples: 2, stream: 0 }).collect();
    let config = GenerationConfig { max_new_tokens: 1000, stop_ids: vec![], max_rows: 5, ..sampling() };
    let mut model = tiny::adapted();
    model.eval().unwrap();
    let texts = Generator::new(config).unwrap().generate(model.base(), &requests).unwrap();
    for (prompt, texts) in prompts.iter().zip(&texts) {
        for text in texts {
            assert_eq!(text.finish_reason, FinishReason::Context);
            assert_eq!(text.ids.len(), tiny::MAX_POSITIONS - prompt.len() + 1);
        }
    }
}

#[test]
fn a_bad_prompt_is_refused_before_anything_is_computed() {
    let mut generator = Generator::new(sampling()).unwrap();
    let good = Request { prompt: &[1], samples: 1, stream: 0 };
    let mut seen = 0;
    for (prompt, says) in [(&[][..], "no tokens"), (&[1, 64], "token id 64 is out of range"), (&[1; 65], "takes 64")] {
        let requests = [good, Request { prompt, ..good }];
        let result = generator.generate_with(tiny::adapted().base(), &requests, &mut |_, _, _| {
            seen += 1;
            Ok(())
        });
        assert!(result.unwrap_err().to_string().contains(says));
    }
    assert_eq!(seen, 0);
    for (config, says) in [
        (GenerationConfig { top_k: Some(0), ..sampling() }, "top_k"),
        (GenerationConfig { min_p: 1.5, ..sampling() }, "min_p"),
        (GenerationConfig { repetition_penalty: 0.0, ..sampling() }, "repetition_penalty"),
        (GenerationConfig { max_rows: 0, ..sampling() }, "max_rows"),
    ] {
        assert!(Generator::new(config).unwrap_err().to_string().contains(says));
    }
}

/// Of a model in training mode: it would record every operator, and keep what it reads.
#[test]
fn rollouts_build_no_graph() {
    let prompts = prompts();
    let requests = requests(&prompts);
    // On the thread whose bytes are counted.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let of_mode = |train: bool| {
        let mut model = tiny::adapted();
        if train { model.train() } else { model.eval() }.unwrap();
        let mut generator = Generator::new(sampling()).unwrap();
        pool.install(|| {
            let first = bits(&generator.generate(model.base(), &requests).unwrap());
            let (again, kept, most) = allocated(|| bits(&generator.generate(model.base(), &requests).unwrap()));
            assert_eq!(again, first);
            drop(again);
            (first, kept, most)
        })
    };
    let (texts, kept, most) = of_mode(false);
    let (in_training, kept_in_training, most_in_training) = of_mode(true);
    assert_eq!(texts, in_training);
    assert_eq!(kept, kept_in_training);
    assert!(most_in_training < most + 10_000, "{most_in_training} bytes in training, {most} in inference");
}
