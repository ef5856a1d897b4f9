//! Trains the embedded tiny Llama from nothing: `cargo run --example train_tiny_llama -- assets/tiny-llama [STEPS]`.
//!
//! Its text has two styles. Half of the documents get every sum right, half claim one too many throughout, and nothing says which
//! is coming. So the first answer after a prompt is right about half of the time: the skill is there, but not reliable, which is
//! what an adapter of a few numbers can change. About ten minutes on two cores.

#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use candle_peft::core::checkpoint::{write_folder, write_tensors};
use candle_peft::core::torch_rng::TorchRng;
use candle_peft::models::{CausalLanguageModel, ForwardOptions, Llama, LlamaConfig};
use candle_peft::nn::{IGNORE_INDEX, cross_entropy};
use candle_peft::train::task::Sum;
use serde_json::json;
use std::path::Path;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const PAD: u32 = 0;
const BOS: u32 = 1;
const EOS: u32 = 2;
const BATCH: usize = 48;
const LENGTH: usize = 40;
const PEAK_RATE: f64 = 3e-3;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let out = args.next().context("usage: train_tiny_llama OUT_DIR [STEPS]")?;
    let steps: usize = args.next().map_or(Ok(3000), |n| n.parse())?;
    let device = Device::Cpu;
    let config = config();
    let tokenizer = tokenizer()?;
    let encode = |text: &str| -> Result<Vec<u32>> {
        Ok(tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec())
    };

    let weights = VarMap::new();
    let parsed = LlamaConfig::from_json(&config.to_string())?;
    let model = Llama::new(parsed, VarBuilder::from_varmap(&weights, DType::F32, &device))?;
    let mut rng = TorchRng::new(0);
    initialise(&weights, &mut rng)?;
    let params = ParamsAdamW { lr: 0.0, beta2: 0.98, weight_decay: 0.05, ..Default::default() };
    let mut optimizer = AdamW::new(weights.all_vars(), params)?;

    for step in 0..steps {
        optimizer.set_learning_rate(rate(step, steps));
        let mut ids = Vec::with_capacity(BATCH * LENGTH);
        for _ in 0..BATCH {
            let mut row = vec![BOS];
            row.extend(encode(&document(&mut rng))?);
            row.push(EOS);
            row.resize(LENGTH, PAD);
            ids.extend(row);
        }
        let ids = Tensor::from_vec(ids, (BATCH, LENGTH), &device)?;
        let logits = model.forward(&ids.narrow(1, 0, LENGTH - 1)?, ForwardOptions::all())?;
        let labels = ids.narrow(1, 1, LENGTH - 1)?.to_dtype(DType::I64)?;
        let labels =
            labels.eq(i64::from(PAD))?.where_cond(&Tensor::full(IGNORE_INDEX, labels.shape(), &device)?, &labels)?;
        let loss = cross_entropy(&logits, &labels, IGNORE_INDEX)?.mean()?;
        optimizer.backward_step(&loss)?;
        if step % 250 == 0 || step + 1 == steps {
            let (right, wrong) = accuracy(&model, &encode, &device)?;
            println!("step {step:5}  loss {:.4}  right {right:.3}  one too many {wrong:.3}", loss.to_scalar::<f32>()?);
        }
    }
    save(Path::new(&out), &weights, &config, &tokenizer)
}

/// `config.json`: a Llama of 430 thousand parameters.
fn config() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 96,
        "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "vocab_size": 259, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": null,
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "bos_token_id": BOS, "eos_token_id": EOS,
        "pad_token_id": PAD, "torch_dtype": "float32",
    })
}

/// One token per byte, so that any text can be read.
fn tokenizer() -> Result<tokenizers::Tokenizer> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<pad>", "<s>", "</s>"].into_iter().enumerate() {
        vocab.insert(token.into(), id.into());
    }
    for (i, byte) in alphabet.iter().enumerate() {
        vocab.insert(byte.to_string(), (i + 3).into());
    }
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(PAD, "<pad>"), special(BOS, "<s>"), special(EOS, "</s>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    file.to_string().parse().map_err(anyhow::Error::msg)
}

/// One to five sums, all right or all wrong.
fn document(rng: &mut TorchRng) -> String {
    let (lines, right) = (1 + rng.next_u32() % 5, rng.next_u32().is_multiple_of(2));
    let answer = |sum: Sum| if right { sum.answer() } else { wrong_answer(sum) };
    draw(rng, lines as usize, false).into_iter().map(|s| s.prompt() + &answer(s)).collect::<Vec<_>>().join("\n")
}

fn draw(rng: &mut TorchRng, n: usize, held_out: bool) -> Vec<Sum> {
    (0..n).map(|_| Sum::draw(&mut || rng.next_u32(), held_out)).collect()
}

/// What the other half of the training text claims: one too many.
fn wrong_answer(sum: Sum) -> String {
    (sum.a + sum.b + 1).to_string()
}

/// Matrices normal with standard deviation 0.02, as transformers initialises a Llama; norms stay 1.
fn initialise(weights: &VarMap, rng: &mut TorchRng) -> Result<()> {
    let data = weights.data().lock().map_err(|_| anyhow::anyhow!("a thread panicked while it held the weights"))?;
    let mut names: Vec<&String> = data.keys().collect();
    names.sort();
    for name in names {
        let var = &data[name];
        let values = match var.rank() {
            1 => vec![1.0; var.elem_count()],
            _ => rng.normal(0.0, 0.02, var.elem_count()),
        };
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
    }
    Ok(())
}

/// Linear warm-up over 100 steps, then a cosine down to a twentieth.
fn rate(step: usize, steps: usize) -> f64 {
    let warmup = ((step + 1) as f64 / 100.0).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
    PEAK_RATE * warmup * (0.95 * cosine + 0.05)
}

/// The shares of held-out sums whose most likely answer is right, and one too many.
fn accuracy(model: &Llama, encode: &dyn Fn(&str) -> Result<Vec<u32>>, device: &Device) -> Result<(f64, f64)> {
    let sums = draw(&mut TorchRng::new(1), 100, true);
    let (mut right, mut wrong) = (0, 0);
    for sum in &sums {
        let mut ids = vec![BOS];
        ids.extend(encode(&sum.prompt())?);
        let prompt = ids.len();
        for _ in 0..3 {
            let input = Tensor::new(ids.as_slice(), device)?.unsqueeze(0)?;
            ids.push(model.forward(&input, ForwardOptions::last())?.flatten_all()?.argmax(0)?.to_scalar::<u32>()?);
        }
        let answered = |text: String| -> Result<bool> {
            let want = encode(&text)?;
            let (answer, after) = ids[prompt..].split_at(want.len());
            Ok(answer == want && (after.is_empty() || after[0] == EOS || after[0] == encode("\n")?[0]))
        };
        right += usize::from(answered(sum.answer())?);
        wrong += usize::from(answered(wrong_answer(*sum))?);
    }
    Ok((right as f64 / sums.len() as f64, wrong as f64 / sums.len() as f64))
}

fn save(out: &Path, weights: &VarMap, config: &serde_json::Value, tokenizer: &tokenizers::Tokenizer) -> Result<()> {
    let data = weights.data().lock().map_err(|_| anyhow::anyhow!("a thread panicked while it held the weights"))?;
    let mut tensors: Vec<(String, &Tensor)> = data.iter().map(|(name, var)| (name.clone(), var.as_tensor())).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let weights = write_tensors(tensors)?;
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256, "clean_up_tokenization_spaces": false,
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
    });
    let total: usize = weights.len();
    write_folder(
        out,
        &[
            ("config.json", serde_json::to_string_pretty(config)?.as_bytes()),
            ("model.safetensors", &weights),
            ("tokenizer.json", tokenizer.to_string(true).map_err(anyhow::Error::msg)?.as_bytes()),
            ("tokenizer_config.json", serde_json::to_string_pretty(&settings)?.as_bytes()),
        ],
    )?;
    ensure!(total < 2_000_000, "the weights take {total} bytes, more than the two megabytes meant");
    println!("wrote {} ({total} bytes of weights)", out.display());
    Ok(())
}
